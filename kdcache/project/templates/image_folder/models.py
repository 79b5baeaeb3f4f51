"""A small convolutional network for images of any size: teacher and student are two widths of it.

Any `torch.nn.Module` that returns raw logits (no softmax) can take its place.
"""

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three convolutions with batch norm, then one number for each channel, then the logits.

    Args:
        num_classes: how many classes there are.
        width: channels of the first convolution; the others have twice and four times as many.
    """

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3  # red, green, blue
        for channels in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(before, channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, S, S)."""
        return self.head(self.layers(images).mean(dim=(2, 3)))
