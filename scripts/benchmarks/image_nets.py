"""Image networks of the usual sizes, made from transformers' configurations with random weights.

They return raw logits as a tensor. Needs transformers; nothing is downloaded.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

NUM_CLASSES = 1000


class ImageNet(nn.Module):
    """One of transformers' networks, and of what it returns the logits.

    Args:
        config: its sizes; ``num_labels`` classes.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.net = ResNetForImageClassification(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C) of (B, 3, H, W)."""
        return self.net(pixels).logits


def resnet50() -> nn.Module:
    """25.6 million parameters (He et al. 2015, arXiv:1512.03385, table 1)."""
    return ImageNet(
        ResNetConfig(
            layer_type="bottleneck",
            embedding_size=64,
            hidden_sizes=[256, 512, 1024, 2048],
            depths=[3, 4, 6, 3],
            num_labels=NUM_CLASSES,
        )
    )


def resnet18() -> nn.Module:
    """11.7 million parameters."""
    return ImageNet(
        ResNetConfig(
            layer_type="basic",
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            num_labels=NUM_CLASSES,
        )
    )


def tiny_resnet() -> nn.Module:
    """A few thousand parameters, to see that a script runs."""
    return ImageNet(
        ResNetConfig(
            layer_type="basic",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_labels=NUM_CLASSES,
        )
    )
