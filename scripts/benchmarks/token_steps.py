"""What a language model's step on cached targets costs beside one on plain cross entropy.

    python -m scripts.benchmarks.token_steps [--repeats 15] [--only top-32 ...] [--sequences 2]

The student is a GPT-2 of distilgpt2's sizes (6 layers, 768 wide, 12 heads, 50,257 tokens) with
random weights; a step is: take the batch (and its targets, from the local copy of a real cache),
forward, backward, AdamW. The yardstick is transformers' own loss. All ways take turns within
every repeat. On a machine that others use, look at the ratio of CPU times with ``--threads 1``:
threads that wait for one another count as busy.

Needs transformers. The teacher is a tiny random GPT-2: what it says costs no student time.
"""

from __future__ import annotations

import argparse
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

import kdcache
from kdcache import DeferredLogits, forward
from kdcache.losses import Objective
from scripts.measuring.timing import show, take_turns

VOCABULARY = 50_257
BATCH = {"causal": True}
CODECS = {
    "top-20": kdcache.TopKCodec(k=20),
    "top-32": kdcache.TopKCodec(k=32),
    "dense": kdcache.DenseCodec(),
}
BASE = "transformers' own cross entropy"
BOTH = {"kd_loss": 0.9, "student_loss": 0.1}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train: on which targets, with which losses, and where the head is computed."""

    targets: str
    losses: Mapping[str, float]
    temperature: float = 1.0
    on_hidden: bool = False

    def __str__(self) -> str:
        where = ", on hidden states" if self.on_hidden else ""
        losses = " + ".join(self.losses)
        return f"{losses}, T = {self.temperature:g}, {self.targets}{where}"


WAYS = (
    Way(targets="top-20", losses={"kd_loss": 1.0}),
    Way(targets="top-32", losses={"kd_loss": 1.0}),
    Way(targets="top-32", losses=BOTH),
    Way(targets="top-32", losses={"kd_loss": 1.0}, temperature=2.0),
    Way(targets="top-32", losses=BOTH, temperature=2.0),
    Way(targets="top-32", losses={"reverse_kl": 1.0}),
    Way(targets="top-32", losses={"jensen_shannon": 1.0}),
    Way(targets="top-32", losses={"total_variation": 1.0}),
    Way(targets="dense", losses={"kd_loss": 1.0}),
    Way(targets="dense", losses=BOTH, temperature=2.0),
    Way(targets="dense", losses={"jensen_shannon": 1.0}),
    Way(targets="top-32", losses={"kd_loss": 1.0}, on_hidden=True),
    Way(targets="top-32", losses=BOTH, temperature=2.0, on_hidden=True),
    Way(targets="dense", losses={"kd_loss": 1.0}, on_hidden=True),
)


class Tokens(Dataset[dict[str, Tensor]]):
    """Random sequences of token ids, each its own labels."""

    def __init__(self, number: int, length: int, vocabulary: int = VOCABULARY) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(vocabulary, (number, length), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def gpt2(
    length: int, *, layers: int, width: int, heads: int, vocabulary: int = VOCABULARY
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


class WithLogits(nn.Module):
    """The student as it is used for distillation."""

    def __init__(self, net: GPT2LMHeadModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.net(input_ids=input_ids, use_cache=False).logits


class WithHiddenStates(WithLogits):
    """The same, with the head left to the losses."""

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.net.transformer(input_ids=input_ids, use_cache=False).last_hidden_state
        return DeferredLogits(hidden=hidden, weight=self.net.lm_head.weight)


def over_and_over(loader: DataLoader[Any]) -> Iterator[Any]:
    """Batches without an end."""
    while True:
        yield from loader


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch, moved as Lightning moves it."""
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


def steps(
    net: GPT2LMHeadModel,
    plain: DataLoader[Any],
    cached: Mapping[str, DataLoader[Any]],
    ways: Sequence[Way] = WAYS,
) -> dict[str, Callable[[], Tensor]]:
    """Name -> a function that takes the next batch and makes a total with its graph.

    Args:
        net: the student, on the device that computes.
        plain: batches without targets.
        cached: targets -> the same batches with them.
        ways: to train; transformers' own loss comes before them.
    """
    batches, device = over_and_over(plain), net.lm_head.weight.device

    def cross_entropy() -> Tensor:
        batch = on_device(next(batches), device)
        return net(**batch, use_cache=False).loss

    made: dict[str, Callable[[], Tensor]] = {BASE: cross_entropy}
    mapping = kdcache.BatchMapping(**BATCH)
    for way in ways:
        student = (WithHiddenStates if way.on_hidden else WithLogits)(net)
        objective = Objective(losses=way.losses, temperature=way.temperature)
        joined = over_and_over(cached[way.targets])

        def distil(
            student: nn.Module = student,
            objective: Objective = objective,
            joined: Iterator[Any] = joined,
        ) -> Tensor:
            batch, targets = next(joined)
            output = forward(student, mapping, on_device(batch, device))
            return objective.evaluate(
                output.all_logits, targets.to(device), output.labels, rows=output.rows
            ).total

        made[str(way)] = distil
    return made


def train(
    net: nn.Module, ways: Mapping[str, Callable[[], Tensor]]
) -> dict[str, Callable[[], None]]:
    """The same names -> a whole step of training."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)

    def step(total: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        total().backward()
        optimizer.step()

    return {name: functools.partial(step, total) for name, total in ways.items()}


def main() -> None:
    """Dump three caches, train in turns, show medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sequences", type=int, default=2, help="sequences of a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument(
        "--only", action="append", default=[], help="ways whose name has this in it (repeatable)"
    )
    parser.add_argument("--threads", type=int, help="of torch; its own default if not said")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    logging.getLogger("kdcache").setLevel(logging.ERROR)  # teachers of random weights guess
    data = Tokens(4 * arguments.sequences, arguments.length)
    plain = DataLoader(data, batch_size=arguments.sequences, shuffle=True)
    teacher = gpt2(arguments.length, layers=1, width=64, heads=2).eval()
    student = gpt2(arguments.length, layers=6, width=768, heads=12)
    with tempfile.TemporaryDirectory() as name:
        cached = {}
        for targets, codec in CODECS.items():
            cache = kdcache.dump_teacher(
                WithLogits(teacher),
                plain,
                Path(name) / f"{targets}.zarr",
                codec=codec,
                batch=BATCH,
                progress=False,
            )
            joined = kdcache.CachedDataset(data, cache["train"], batch=BATCH)
            cached[targets] = joined.loader_like(plain)
        ways = steps(student, plain, cached)
        base, *others = ways
        chosen = [way for way in others if any(part in way for part in arguments.only or [""])]
        named = {name: ways[name] for name in [base, *chosen]}
        taken = take_turns(train(student, named), arguments.repeats)
    sizes = f"{arguments.sequences} x {arguments.length} tokens, V = {VOCABULARY:,}"
    show(f"a step of {sizes}, {torch.get_num_threads()} threads", taken, "s")


if __name__ == "__main__":
    main()
