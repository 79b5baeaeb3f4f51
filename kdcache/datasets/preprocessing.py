"""How a published model wants its images normalised: mean and standard deviation of each channel.

A teacher that sees other values than it was trained with still answers, only worse, and nothing
else would say so.
"""

from __future__ import annotations

from typing import Any

from kdcache.errors import UsageError

Channels = tuple[float, float, float]

IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels, red, green and blue, from 0 to 1."""


def mean_and_std(name: str) -> tuple[Channels, Channels]:
    """Mean and standard deviation of pixels from 0 to 1.

    Args:
        name: ``imagenet``; ``hf:`` with a Hugging Face name or a folder; ``timm:`` with a name of
            timm's.

    Raises:
        UsageError: there is no such model here, or it does not say.
    """
    if name == "imagenet":
        return IMAGENET
    source, _, model = name.partition(":")
    if source not in ("hf", "timm") or not model:
        raise UsageError(
            f"normalize is imagenet, hf:NAME_OR_FOLDER or timm:NAME (a model that says how), not "
            f"{name!r}."
        )
    said = _of_transformers(model) if source == "hf" else _of_timm(model)
    mean, std = _channels(said.get("mean")), _channels(said.get("std"))
    if mean is None or std is None:
        raise UsageError(
            f"normalize: {name} names no mean and standard deviation of three channels. Write "
            "normalize: imagenet, or a model that does."
        )
    return mean, std


def _channels(value: Any) -> Channels | None:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    red, green, blue = map(float, value)
    return red, green, blue


def _of_transformers(model: str) -> dict[str, Any]:
    try:
        from transformers import ImageProcessingMixin
    except ImportError as error:
        raise UsageError(
            f"normalize: hf:{model} needs transformers, which is not installed: "
            'pip install "kdcache[hf]"'
        ) from error
    try:
        said, _ = ImageProcessingMixin.get_image_processor_dict(model)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"normalize: hf:{model} has no preprocessor_config.json, here or on the Hugging Face "
            "hub. Write normalize: imagenet, or a model that has one."
        ) from error
    if said.get("do_normalize", True):
        return {"mean": said.get("image_mean"), "std": said.get("image_std")}
    return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def _of_timm(model: str) -> dict[str, Any]:
    import torch

    try:
        import timm
    except ImportError as error:
        raise UsageError(
            f"normalize: timm:{model} needs timm, which cannot be imported ({error}): "
            "pip install timm"
        ) from error
    with torch.random.fork_rng():  # the model's first weights are of no interest
        made = timm.create_model(model, pretrained=False)
    return dict(getattr(made, "pretrained_cfg", None) or {})
