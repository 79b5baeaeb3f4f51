"""Dumps killed with SIGKILL at random moments, resumed, and held against uninterrupted ones.

    python -m scripts.checks.crash_test --dumps 100

Each dump is killed one to three times, alone or as one or all of two processes, resumed by one to
three processes, and compared decoded array for decoded array. Processes are forked from this one,
which has imported everything and does no work itself, so that kills hit the dump and not the
import; a few are real ``devices=2`` runs. Ends with 1 unless every dump came out equal.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdcache import DenseCodec, TopKCodec
from kdcache.codecs import Codec
from kdcache.dump import dump_teacher
from kdcache.errors import KdcacheError
from kdcache.store import open_cache
from kdcache.tools.verify import verify_cache

NUM_SAMPLES, NUM_CLASSES, WIDTH = 180, 50, 8
SAMPLES_PER_SHARD, BATCH_SIZE = 8, 4
NUM_SHARDS = -(-NUM_SAMPLES // SAMPLES_PER_SHARD)
BATCH_S = 0.005
CODECS: dict[str, Codec] = {"dense": DenseCodec(), "topk": TopKCodec(k=8)}
TIMEOUT_S, POLL_S = 120, 0.005


class Sentences(Dataset[dict[str, Tensor]]):
    """Uneven lengths, some of them 0, so that shards differ in size."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"input_ids": torch.randint(1, 97, (index * 7 % 13,), generator=generator)}


def pad(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = [sample["input_ids"] for sample in samples]
    padded = nn.utils.rnn.pad_sequence([torch.zeros(13, dtype=torch.int64), *ids], True)[1:]
    lengths = torch.tensor([len(one) for one in ids])
    return {
        "input_ids": padded,
        "attention_mask": (torch.arange(13) < lengths[:, None]).long(),
    }


class Teacher(nn.Module):
    """Small, and slow enough to be hit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(97, WIDTH), nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        time.sleep(BATCH_S)
        return self.head(self.table(input_ids) + 0 * attention_mask[..., None])


def dump(cache: Path, codec: str, part: str | None = None, devices: int = 1) -> None:
    dump_teacher(
        Teacher,
        DataLoader(Sentences(), batch_size=BATCH_SIZE, collate_fn=pad),
        cache,
        codec=CODECS[codec],
        samples_per_shard=SAMPLES_PER_SHARD,
        part=part,
        devices=devices,
        accelerator="cpu",
        progress=False,
    )


def dump_on_devices(cache: Path, codec: str) -> None:
    """The parent of two replicas; ends with 1 where one of them was killed."""
    try:
        dump(cache, codec, devices=2)
    except KdcacheError as error:
        if "was killed by SIGKILL" not in str(error):
            raise
        os._exit(1)


def compare(cache: Path, reference: Path) -> None:
    """Raise where a cache does not hold, bit for bit, what the reference holds."""
    mine, other = open_cache(cache)["train"], open_cache(reference)["train"]
    assert verify_cache(cache).is_sound
    assert mine.digest == other.digest
    for commit, expected in zip(mine.commits, other.commits, strict=True):
        found, wanted = mine.read_shard(commit), other.read_shard(expected)
        assert found.keys() == wanted.keys()
        for name, rows in wanted.items():
            assert found[name].dtype == rows.dtype
            assert found[name].tobytes() == rows.tobytes(), f"{name} of shard {commit.shard}"
        assert commit.statistics == expected.statistics


def fork(call: Callable[[], None]) -> int:
    """Run a call in a new process with a process group of its own; its id."""
    assert threading.active_count() == 1, "a thread would not survive the fork"
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        call()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def start(cache: Path, codec: str, processes: int) -> list[int]:
    if processes == 1:
        return [fork(lambda: dump(cache, codec))]
    parts = [f"{number}/{processes}" for number in range(processes)]
    return [fork(lambda part=part: dump(cache, codec, part)) for part in parts]


def ending(child: int) -> int | None:
    """Its exit code; None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def is_running(child: int) -> bool:
    """Without taking note of its end."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait(children: Sequence[int]) -> list[int]:
    """The exit codes, negative for a signal; TimeoutError names a process that hangs."""
    codes: dict[int, int] = {}
    until = time.monotonic() + TIMEOUT_S
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            code = ending(child)
            if code is not None:
                codes[child] = code
        if time.monotonic() > until:
            raise TimeoutError(f"processes {sorted(set(children) - set(codes))} hang")
        time.sleep(POLL_S)
    return [codes[child] for child in children]


def kill_group(child: int) -> None:
    # Before setpgid in the child it has no group of its own; then it has no children either.
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)


def replicas_of(child: int) -> list[int]:
    """Processes that a ``devices=2`` run has spawned for its replicas (Linux)."""
    children = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    spawned = [
        pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return [int(pid) for pid in spawned]


def num_commits(cache: Path) -> int:
    return len(list(cache.glob("train/view-000/commits/shard-*.json")))


@dataclass(kw_only=True)
class Row:
    """Of the table: kills of one kind.

    Attributes:
        kills: starts that a SIGKILL was sent to.
        running: those that were still at work.
        shards: there at each kill of a dump at work.
        dumps: whose first kill was of this kind.
        equal: of them, those that were equal in the end.
    """

    kills: int = 0
    running: int = 0
    shards: list[int] = field(default_factory=list)
    dumps: int = 0
    equal: int = 0

    def cells(self, title: str) -> list[str]:
        known = sorted(self.shards)
        spread = f"{known[0]} / {statistics.median(known):g} / {known[-1]}" if known else "-"
        numbers = [self.kills, self.running, spread, self.dumps, self.equal]
        return [title, *map(str, numbers)]


KINDS = ("1 process", "2 processes, both", "2 processes, one", "devices=2, all", "devices=2, one")
HEADER = ["killed", "kills", "while running", "shards then: min / median / max", "dumps", "equal"]


class CrashTest:
    """All dumps, one after another.

    Args:
        folder: for the caches; those that are not equal are left there.
        rng: decides everything that is random.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.rows = {kind: Row() for kind in KINDS}
        self._duration_s = 0.0

    def _wait_for_a_moment(self, cache: Path, children: Sequence[int]) -> None:
        """Until a random number of shards is there, and a random while longer."""
        there = num_commits(cache)
        target = self.rng.randint(there, max(there, NUM_SHARDS - 1))
        until = time.monotonic() + TIMEOUT_S
        while num_commits(cache) < target and any(map(is_running, children)):
            if time.monotonic() > until:
                raise TimeoutError(f"{cache} has {num_commits(cache)} shards and gets no more")
            time.sleep(POLL_S)
        begins = target == there
        time.sleep(self.rng.uniform(0, self._duration_s / (3 if begins else NUM_SHARDS)))

    def references(self) -> None:
        """Uninterrupted dumps; how long one takes."""
        for codec in CODECS:
            began = time.monotonic()
            (code,) = wait(start(self.folder / codec, codec, 1))
            assert not code, f"an uninterrupted dump failed: {code}"
            self._duration_s = time.monotonic() - began

    def forked_dump(self, number: int) -> None:
        """Kill one to three starts, in one or two processes, then resume."""
        codec = self.rng.choice(list(CODECS))
        cache = self.folder / f"dump-{number:03}"
        first = None
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            if num_commits(cache) == NUM_SHARDS:
                break
            kind = self.rng.choice(KINDS[:3])
            first = first or kind
            self._kill(kind, start(cache, codec, 1 if kind == KINDS[0] else 2), cache)
        self._resume(first or KINDS[0], cache, codec)

    def _kill(self, kind: str, children: list[int], cache: Path) -> None:
        self._wait_for_a_moment(cache, children)
        row, shards = self.rows[kind], num_commits(cache)
        doomed = [self.rng.choice(children)] if kind == KINDS[2] else children
        for child in doomed:
            kill_group(child)
        codes = dict(zip(children, wait(children), strict=True))
        self._note(row, shards, [codes[child] for child in doomed])
        others = [code for child, code in codes.items() if child not in doomed]
        assert not any(others), f"one that was not killed failed: {others}"

    def _note(self, row: Row, shards: int, codes: Sequence[int]) -> None:
        assert all(code in (0, -signal.SIGKILL) for code in codes), f"a dump failed: {codes}"
        row.kills += 1
        if any(codes):
            row.running += 1
            row.shards.append(shards)

    def real_dump(self, number: int) -> None:
        """The same with processes that ``devices=2`` spawns, killed once one of them is at work."""
        codec, kind = self.rng.choice(list(CODECS)), KINDS[3 + number % 2]
        cache = self.folder / f"real-{number:03}"
        child = fork(lambda: dump_on_devices(cache, codec))
        self._wait_for_a_moment(cache, [child])
        row, shards = self.rows[kind], num_commits(cache)
        replicas = replicas_of(child)
        if kind == KINDS[3] or not replicas:
            kill_group(child)
            self._note(row, shards, wait([child]))
        else:
            os.kill(self.rng.choice(replicas), signal.SIGKILL)
            (code,) = wait([child])  # the parent tells of it when the other replica is done
            row.kills += 1
            row.running += code != 0
            row.shards += [shards] * (code != 0)
        self._resume(kind, cache, codec)

    def _resume(self, kind: str, cache: Path, codec: str) -> None:
        codes = wait(start(cache, codec, self.rng.choice((1, 2, 3))))
        assert not any(codes), f"a resumed dump failed: {codes}"
        (differs,) = wait([fork(lambda: compare(cache, self.folder / codec))])
        row = self.rows[kind]
        row.dumps += 1
        row.equal += not differs
        if not differs:
            shutil.rmtree(cache)

    def table(self) -> str:
        rows = [HEADER, *(row.cells(kind) for kind, row in self.rows.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if at else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dumps", type=int, default=100)
    parser.add_argument("--real", type=int, help="of them with devices=2 (default one in 25)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    real = options.dumps // 25 if options.real is None else options.real
    folder = Path(tempfile.mkdtemp(prefix="crash-test-"))
    test = CrashTest(folder, random.Random(options.seed))
    began = time.monotonic()
    test.references()
    for number in range(options.dumps - real):
        test.forked_dump(number)
    for number in range(real):
        test.real_dump(number)
    print(test.table())
    equal = sum(row.equal for row in test.rows.values())
    kills = sum(row.running for row in test.rows.values())
    print(
        f"{options.dumps} dumps, {kills} killed while running, {equal} equal to an uninterrupted "
        f"one; {time.monotonic() - began:.0f} s, seed {options.seed}"
    )
    if equal == options.dumps:
        shutil.rmtree(folder)
        return 0
    print(f"those that differ are in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
