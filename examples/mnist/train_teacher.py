"""Train the example's teacher on labels: plain PyTorch, nothing of kdcache.

    python examples/mnist/train_teacher.py --data FOLDER --out runs/mnist/teacher.safetensors

Prints the loss, the test accuracy and the seconds of every epoch, and writes the weights of the
last one. The same seed, machine and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch
from data import MnistData  # a script's own folder is on its import path
from resnet import resnet34, small_teacher
from torch import Tensor, nn
from torch.nn import functional as F

MODELS = {"small": small_teacher, "resnet34": resnet34}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a teacher for the MNIST example.")
    parser.add_argument("--data", required=True, help="folder with MNIST's four IDX files")
    parser.add_argument("--out", required=True, type=Path, help="file to write: *.safetensors")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak of the one-cycle schedule")
    parser.add_argument("--num-train", type=int, default=None, help="first images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--download", action="store_true", help="fetch missing files into --data")
    return parser.parse_args()


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: str,
) -> float:
    """Mean cross entropy over the epoch's samples, in nats."""
    model.train()
    loss_sum, num_samples = 0.0, 0
    for images, labels in batches:
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += loss.item() * len(labels)
        num_samples += len(labels)
    return loss_sum / num_samples


@torch.inference_mode()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str) -> float:
    """Share of samples whose largest logit is at their label."""
    model.eval()
    num_right, num_samples = 0, 0
    for images, labels in batches:
        predicted = model(images.to(device)).argmax(dim=-1).cpu()
        num_right += int((predicted == labels).sum())
        num_samples += len(labels)
    return num_right / num_samples


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    data = MnistData(
        root=args.data,
        batch_size=args.batch_size,
        num_train=args.num_train,
        download=args.download,
        seed=args.seed,
    )
    train_batches, test_batches = data.train_dataloader(), data.val_dataloader()["test"]
    model = MODELS[args.model]().to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.epochs * len(train_batches)
    )
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss = train_epoch(model, train_batches, optimizer, schedule, args.device)
        seconds = time.perf_counter() - start
        test_accuracy = accuracy(model, test_batches, args.device)
        print(
            f"epoch {epoch}/{args.epochs}: loss {loss:.4f}, test accuracy {test_accuracy:.4f}, "
            f"{seconds:.1f} s",
            flush=True,
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.cpu().state_dict(), args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
