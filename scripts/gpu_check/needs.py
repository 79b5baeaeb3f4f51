"""The packages that the check needs, and which of them are missing. Nothing is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

PACKAGES = {
    "torch": "torch",
    "pytorch-lightning": "pytorch_lightning",
    "torchmetrics": "torchmetrics",
    "transformers": "transformers",
    "zarr": "zarr",
    "donfig": "donfig",  # zarr's own
    "numcodecs": "numcodecs",
    "google-crc32c": "google_crc32c",
    "filelock": "filelock",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "rich": "rich",
    "xxhash": "xxhash",
    "pytest": "pytest",
}
"""Name in a package index -> module."""


def missing() -> list[str]:
    """Names of the packages that cannot be imported here."""
    return [name for name, module in PACKAGES.items() if find_spec(module) is None]


def versions() -> dict[str, str | None]:
    """Of every package, where it says so."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
