"""Memory and time of a loss head, forward and backward, against the number of positions.

    python -m scripts.benchmarks.loss_heads [--classes 32768 --classes 131072] [--positions 256 ...]

KD on top-32 targets plus cross entropy at T = 1, from hidden states of width 512 through an
output layer to gradients of both, in three ways:

    plain            logits, then kd_loss and F.cross_entropy by autograd
    fused, logits    logits, then fused_losses on them
    fused, hidden    fused_losses on hidden states and layer: the logits never exist as a whole

Every figure is of a process of its own: peak memory above what was held before the head (of the
process; on a GPU, of torch's allocator), and the median time. What grows with the positions is
said beside: hidden states' gradient for the last way. On a GPU, numbers are bfloat16.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kdcache.losses import fused_losses, kd_loss
from kdcache.outputs import DeferredLogits
from kdcache.targets import TopKTargets
from scripts.measuring.peak_memory import available_bytes, peak_here
from scripts.measuring.timing import clocked

K, WIDTH = 32, 512
KD, CROSS_ENTROPY = 0.9, 0.1
# float32 copies of (positions, C) that the plain way holds at once, for what is not even tried.
PLAIN_COPIES = 8

Head = Callable[[DeferredLogits, TopKTargets, Tensor], Tensor]


def plain(student: DeferredLogits, targets: TopKTargets, labels: Tensor) -> Tensor:
    """By autograd."""
    logits = student.logits()
    cross_entropy = F.cross_entropy(logits.float(), labels)
    return KD * kd_loss(logits, targets, 1.0).mean() + CROSS_ENTROPY * cross_entropy


def fused(student: Tensor | DeferredLogits, targets: TopKTargets, labels: Tensor) -> Tensor:
    """In one pass."""
    weights = {"kd_loss": KD / len(labels), "student_loss": CROSS_ENTROPY / len(labels)}
    return fused_losses(student, targets, labels, weights=weights, temperature=1.0)[0]


def fused_on_logits(student: DeferredLogits, targets: TopKTargets, labels: Tensor) -> Tensor:
    """In one pass over logits that were made before."""
    return fused(student.logits(), targets, labels)


WAYS: Mapping[str, Head] = {
    "plain": plain,
    "fused, logits": fused_on_logits,
    "fused, hidden": fused,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Hidden states and layer, targets (K random classes each), labels; nothing of (P, C)."""

    student: DeferredLogits
    targets: TopKTargets
    labels: Tensor

    @classmethod
    def of(cls, classes: int, positions: int, device: torch.device) -> Problem:
        """A random one, the same at every call."""
        torch.manual_seed(0)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = torch.randn(positions, WIDTH, **options).requires_grad_()
        weight = (torch.randn(classes, WIDTH, **options) / WIDTH**0.5).requires_grad_()
        first = torch.randint(classes, (positions, 1), device=device)
        log_p = torch.randn(positions, K + 1, device=device).log_softmax(-1)
        order = log_p[:, :K].sort(descending=True)
        targets = TopKTargets(
            ids=((first + 997 * torch.arange(K, device=device)) % classes).int(),
            log_p=order.values.half(),
            tail_log_sums=log_p[:, K:],
            temperatures=(1.0,),
            num_positions=torch.tensor([positions]),
            num_classes=classes,
        )
        labels = torch.randint(classes, (positions,), device=device)
        return cls(
            student=DeferredLogits(hidden=hidden, weight=weight), targets=targets, labels=labels
        )

    def forget(self) -> None:
        """The gradients of the last turn."""
        self.student.hidden.grad = self.student.weight.grad = None

    def turn(self, way: str) -> None:
        """Forward and backward, once."""
        self.forget()
        WAYS[way](self.student, self.targets, self.labels).backward()

    def peak_bytes(self, way: str) -> int:
        """Of one turn, above what is held without gradients."""
        hidden, weight = self.student.hidden.detach(), self.student.weight.detach()
        F.linear(hidden[:1], weight)  # its library is loaded, with memory of its own
        self.forget()
        return peak_here(functools.partial(self.turn, way), self.student.device)


def measure(way: str, classes: int, positions: int, repeats: int) -> dict[str, float]:
    """Peak bytes of the first turn, and the median seconds of those after it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem = Problem.of(classes, positions, device)
    peak = problem.peak_bytes(way)
    turns = [clocked(functools.partial(problem.turn, way)).wall_s for _ in range(repeats)]
    return {"bytes": peak, "seconds": statistics.median(turns)}


def in_a_process(way: str, classes: int, positions: int, repeats: int) -> dict[str, float] | str:
    """The figures, or why there are none."""
    if not torch.cuda.is_available():
        free = available_bytes()
        if way != "fused, hidden" and PLAIN_COPIES * 4 * classes * positions > free:
            return "not tried: too little memory is free"
    command = [sys.executable, "-m", "scripts.benchmarks.loss_heads", "--measure", way]
    command += ["--classes", str(classes), "--positions", str(positions)]
    found = subprocess.run(
        [*command, "--repeats", str(repeats)], capture_output=True, text=True, check=False
    )
    if found.returncode:
        return (found.stderr.strip().splitlines() or ["no output"])[-1][:60]
    return dict(json.loads(found.stdout.splitlines()[-1]))


def show(classes: int, positions: Sequence[int], repeats: int) -> None:
    """A table for one number of classes, and what a position adds."""
    table = Table("", "positions", "peak MiB", "s")
    growth = []
    for way in WAYS:
        peaks = {}
        for number in positions:
            found = in_a_process(way, classes, number, repeats)
            if isinstance(found, str):
                table.add_row(way, f"{number:,}", found, "")
                continue
            peaks[number] = found["bytes"]
            row = f"{found['bytes'] / 2**20:,.0f}", f"{found['seconds']:.2f}"
            table.add_row(way, f"{number:,}", *row)
        if len(peaks) > 1:
            *_, low, high = sorted(peaks)
            slope = (peaks[high] - peaks[low]) / (high - low)
            growth.append(
                f"{way}: from {low:,} to {high:,} positions, {slope / 1024:,.1f} KiB more for each"
            )
    print(f"C = {classes:,}, hidden states of {WIDTH}, top-{K}, load {os.getloadavg()[0]:.1f}")
    Console(width=100).print(table)
    growth.append(
        f"(in float32 a row of logits has {classes * 4 / 1024:,.0f} KiB, one of hidden states "
        f"{WIDTH * 4 / 1024:,.0f})"
    )
    print("\n".join(growth), end="\n\n")


def main() -> None:
    """One figure (``--measure``), or all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, action="append", default=[])
    parser.add_argument("--positions", type=int, action="append", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    many = torch.cuda.is_available()
    classes = arguments.classes or [32_768, 131_072, 262_144]
    positions = arguments.positions or ([2048, 8192, 32_768] if many else [256, 512, 1024, 2048])
    if arguments.measure:
        found = measure(arguments.measure, classes[0], positions[0], arguments.repeats)
        print(json.dumps(found))
        return
    for number in classes:
        show(number, positions, arguments.repeats)


if __name__ == "__main__":
    main()
