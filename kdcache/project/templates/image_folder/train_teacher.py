"""Train the teacher on the labels, and write teacher.safetensors. Plain PyTorch.

Run it: python train_teacher.py. Data and width are read from experiment.yaml, so
that the file which is dumped is the one that was trained. Leave this out if you have a teacher.
"""

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from models import ConvNet
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from kdcache.datasets import ImageFolder

NUM_STEPS = 500  # optimiser steps: a minute or two for images of 32 pixels on a CPU
LEARNING_RATE = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the teacher on the labels.")
    parser.add_argument("--epochs", type=int, help=f"default: {NUM_STEPS} steps, 3 epochs or more")
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent)  # paths in experiment.yaml begin in this folder
    experiment = yaml.safe_load(Path("experiment.yaml").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    data = ImageFolder(**experiment["data"]["init_args"])
    model = ConvNet(**experiment["teacher"]["init_args"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    batches = data.train_dataloader()
    epochs = options.epochs or max(3, NUM_STEPS // len(batches))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=epochs * len(batches)
    )
    print(f"{len(batches.dataset)} training images, {epochs} epochs, on {device}")
    for epoch in range(1, epochs + 1):
        started, total = time.monotonic(), 0.0
        model.train()
        for images, labels in batches:
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        scores = ", ".join(
            f"{name} accuracy {accuracy(model, loader, device):.1%}"
            for name, loader in data.val_dataloader().items()
        )
        seconds = time.monotonic() - started
        print(f"epoch {epoch}/{epochs}: loss {total / len(batches):.3f}, {scores}, {seconds:.1f} s")

    save_file(model.cpu().state_dict(), experiment["teacher"]["weights"])
    print(f"wrote {experiment['teacher']['weights']}")


@torch.inference_mode()
def accuracy(model: nn.Module, loader: Iterable, device: str) -> float:
    """The share of images whose largest logit is the right one."""
    model.eval()
    right = [model(images.to(device)).argmax(-1).cpu() == labels for images, labels in loader]
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    main()
