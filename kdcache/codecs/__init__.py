"""Codecs: how a teacher's logits become columns of numbers, one codec a file.

Torch and NumPy only. ``protocol`` says what a codec is; ``dense`` keeps all logits, ``topk`` the
largest. A codec of your own is named by its class path; a class path that stands in a cache is
imported only where the reader's own configuration names it too.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any

from kdcache.codecs.dense import DenseCodec
from kdcache.codecs.protocol import Codec, FixedCodec
from kdcache.codecs.topk import TopKCodec
from kdcache.errors import CacheError, UsageError, suggest

BUILT_IN: Mapping[str, type[Codec]] = {"dense": DenseCodec, "topk": TopKCodec}


def make_codec(name: str, settings: Mapping[str, Any]) -> Codec:
    """A codec from its name and settings.

    Args:
        name: a built-in's name, or the class path of your own.
        settings: the constructor's arguments.

    Raises:
        UsageError: no such codec, or settings that it does not have.
    """
    codec_class = BUILT_IN.get(name) or _import_class(name)
    try:
        codec = codec_class(**settings)
    except (TypeError, ValueError) as error:
        known = getattr(codec_class, "__annotations__", {})
        unknown = next((key for key in settings if key not in known), None)
        hint = suggest(unknown, set(known) - {"name"}) if unknown else ""
        raise UsageError(f"the codec {name!r} does not take {settings}: {error}. {hint}") from error
    # A protocol with data members (name) can be checked on instances only, not by issubclass.
    if not isinstance(codec, Codec):
        raise UsageError(f"{name!r} is not a codec: see kdcache.codecs.Codec for what one has.")
    return codec


def _import_class(name: str) -> type[Any]:
    module, _, attribute = name.rpartition(".")
    found, reason = None, ""
    if module and all(part.isidentifier() for part in name.split(".")):
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            reason = f" ({error})"
    if not isinstance(found, type):
        raise UsageError(f"there is no codec {name!r}{reason}. {suggest(name, BUILT_IN)}")
    return found


def codec_settings(codec: Codec) -> dict[str, Any]:
    """As a codec stands in the manifest: ``{"name": ..., **settings}``."""
    return {"name": codec.name, **codec.settings()}


def stored_codec(manifest_codec: Mapping[str, Any], trusted: Collection[str] = ()) -> Codec:
    """The codec that a cache's manifest names.

    Args:
        manifest_codec: ``{"name": ..., **settings}``.
        trusted: class paths that the caller itself has named; no other is imported.
    """
    name = manifest_codec.get("name")
    if not isinstance(name, str) or (name not in BUILT_IN and name not in trusted):
        raise CacheError(
            f"the cache was written with the codec {name!r}, which is not built in. If you trust "
            "it, name it yourself: targets.codec in the experiment file, or codecs=[...] in Python."
        )
    settings = {key: value for key, value in manifest_codec.items() if key != "name"}
    return make_codec(name, settings)


__all__ = [
    "BUILT_IN",
    "Codec",
    "DenseCodec",
    "FixedCodec",
    "TopKCodec",
    "codec_settings",
    "make_codec",
    "stored_codec",
]
