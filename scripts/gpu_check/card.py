"""Which device, driver and versions a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

import torch


def describe(device: str) -> dict[str, Any]:
    """Plain values; ``is_there`` says whether there is such a device."""
    found: dict[str, Any] = {
        "device": device,
        "is_there": device != "cuda" or torch.cuda.is_available(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
    }
    if device != "cuda" or not found["is_there"]:
        return found
    card = torch.cuda.get_device_properties(0)
    return found | {
        "name": card.name,
        "memory_bytes": card.total_memory,
        "multiprocessors": card.multi_processor_count,
        "capability": f"{card.major}.{card.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    """Its version as nvidia-smi says it; None where that cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (said.stdout.splitlines() or [None])[0]
