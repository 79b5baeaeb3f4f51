"""Train the teacher on the labels, and write teacher.safetensors. Plain PyTorch.

Run it: python train_teacher.py. REPLACE: leave this out if you have a teacher, and
name its checkpoint in experiment.yaml.
"""

import argparse
import os
from pathlib import Path

import torch
from data import Data
from models import Teacher
from safetensors.torch import save_file
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the teacher on the labels.")
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    os.chdir(Path(__file__).resolve().parent)  # where experiment.yaml looks for the weights
    torch.manual_seed(0)
    data, model = Data(), Teacher()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    for epoch in range(1, epochs + 1):
        for inputs, labels in data.train_dataloader():
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.inference_mode():
            right = [model(x).argmax(1) == y for x, y in data.val_dataloader()["val"]]
        accuracy = torch.cat(right).float().mean()
        print(f"epoch {epoch}/{epochs}: loss {loss:.3f}, val accuracy {accuracy:.1%}")
    save_file(model.state_dict(), "teacher.safetensors")
    print("wrote teacher.safetensors")


if __name__ == "__main__":
    main()
