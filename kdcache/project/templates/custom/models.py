"""Teacher and student. Any `torch.nn.Module` will do that returns raw logits (no softmax)."""

from data import NUM_CLASSES, NUM_FEATURES
from torch import Tensor, nn


# REPLACE: your teacher. A function that builds and returns a model can be named just as well.
class Teacher(nn.Module):
    """Two hidden layers of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(NUM_FEATURES, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, NUM_CLASSES),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, NUM_CLASSES) of inputs (B, NUM_FEATURES)."""
        return self.layers(inputs)


# REPLACE: your student. Its arguments can be set in experiment.yaml, or by --student.width 64
class Student(nn.Module):
    """One hidden layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(NUM_FEATURES, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, NUM_CLASSES) of inputs (B, NUM_FEATURES)."""
        return self.layers(inputs)
