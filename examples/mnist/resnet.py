"""The models: ResNet-18 and ResNet-34 for grey images, and a small pair that a CPU trains.

The ResNets have torchvision's parameter names and shapes (but for one input channel), so that
weights travel both ways; torchvision itself is not needed. Which checkpoints load is decided in
``load_checkpoint``. The invariant: every model returns raw logits; temperature is the loss's.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

# A state dict may be nested under one of these keys ...
_NESTED_UNDER = ("state_dict", "model_state_dict")
# ... and its names may carry what wrapped the model: DataParallel, a Lightning module, compile.
_WRAPPERS = ("module.", "model.", "_orig_mod.")
# The predecessor's training checkpoints hold both models; a checkpoint here means the teacher.
_TEACHER = "teacher_model."
_PROBLEMS_SHOWN = 12


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 5 left)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNet(nn.Module):
    """A ResNet of basic blocks.

    Args:
        num_blocks: basic blocks in each of the four stages.
        num_classes: C, the width of the logits.
        in_channels: 1 for grey images; torchvision's models have 3.
    """

    def __init__(
        self, *, num_blocks: tuple[int, int, int, int], num_classes: int = 10, in_channels: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, num_blocks[0], stride=1)
        self.layer2 = _stage(64, 128, num_blocks[1], stride=2)
        self.layer3 = _stage(128, 256, num_blocks[2], stride=2)
        self.layer4 = _stage(256, 512, num_blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, height, width)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class SmallNet(nn.Module):
    """Plain convolutions with batch norm, each halving the image, then one linear layer.

    Args:
        channels: of each convolution, in order.
        pool: how an image is halved: "max" pools after the convolution (teacher), "stride"
            lets the convolution skip pixels (student, four times cheaper).
        num_classes: C, the width of the logits.
    """

    def __init__(
        self, *, channels: tuple[int, ...], pool: Literal["max", "stride"], num_classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *channels), channels, strict=False):
            stride = 2 if pool == "stride" else 1
            layers += [
                nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            if pool == "max":
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(4 * channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 1, height, width)."""
        return self.fc(self.avgpool(self.features(images)).flatten(1))


def resnet18(num_classes: int = 10, checkpoint: str | None = None) -> nn.Module:
    """ResNet-18 for grey images: 11.2 million parameters."""
    return _loaded(ResNet(num_blocks=(2, 2, 2, 2), num_classes=num_classes), checkpoint)


def resnet34(num_classes: int = 10, checkpoint: str | None = None) -> nn.Module:
    """ResNet-34 for grey images: 21.3 million parameters."""
    return _loaded(ResNet(num_blocks=(3, 4, 6, 3), num_classes=num_classes), checkpoint)


def small_teacher(num_classes: int = 10, checkpoint: str | None = None) -> nn.Module:
    """A teacher for 28x28 images that two CPU cores train in minutes: 98,026 parameters."""
    model = SmallNet(channels=(32, 64, 128), pool="max", num_classes=num_classes)
    return _loaded(model, checkpoint)


def small_student(
    width: int = 8, num_classes: int = 10, checkpoint: str | None = None
) -> nn.Module:
    """A student of ``width`` channels, then 2 and 4 times as many: 7,234 parameters at width 8."""
    model = SmallNet(channels=(width, 2 * width, 4 * width), pool="stride", num_classes=num_classes)
    return _loaded(model, checkpoint)


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """A model's state dict from a .safetensors, .pt or .pth file, by the model's own names.

    Accepts a bare state dict (the predecessor's published teachers), one nested under
    "state_dict" or "model_state_dict", and names behind a wrapper's prefix.

    Raises:
        ValueError: the file holds no state dict that can be loaded without running code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _unwrap(safetensors.torch.load_file(path))
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} does not load as weights only; save the model's state_dict() alone. {error}"
        ) from error
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"{path} holds no state dict: names with tensors, bare or under one of {_NESTED_UNDER}."
        )
    return _unwrap(content)


def _unwrap(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip prefixes that all names share; where both models are there, keep the teacher's."""
    names = dict(state)
    while names:
        if any(name.startswith(_TEACHER) for name in names):
            names = {name: names[name] for name in names if name.startswith(_TEACHER)}
        prefix = next(
            (p for p in (*_WRAPPERS, _TEACHER) if all(name.startswith(p) for name in names)), None
        )
        if prefix is None:
            break
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def _loaded(model: nn.Module, checkpoint: str | None) -> nn.Module:
    """The model with the checkpoint's weights, if there is one; strict about names and shapes."""
    if checkpoint is None:
        return model
    found, wanted = load_checkpoint(checkpoint), model.state_dict()
    problems = [f"missing: {name}" for name in wanted if name not in found]
    problems += [f"unexpected: {name}" for name in found if name not in wanted]
    problems += [
        f"shape of {name}: {tuple(found[name].shape)} in the file, {tuple(wanted[name].shape)} here"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:_PROBLEMS_SHOWN])
        more = len(problems) - _PROBLEMS_SHOWN
        raise ValueError(
            f"{checkpoint} does not fit this model, {type(model).__name__} with {len(wanted)} "
            f"tensors; {len(problems)} names differ:\n  {shown}"
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nNothing was loaded. Give the model that the file was saved from, or another file."
        )
    model.load_state_dict(found)
    return model


def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)))
