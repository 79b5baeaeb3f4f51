"""Mutated metadata of a small cache: every way to use it ends well, or in a KdcacheError.

    python -m scripts.checks.fuzz_cache [--examples 2000] [--seed 0]

Hypothesis chooses one to three files of metadata and what becomes of them; half of the time the
checksums of records and indexes are made to agree again, as an attacker would. The cache is then
opened, inspected, verified, cleaned, repaired, copied, read and decoded. It fails (exit code 1)
where anything but a KdcacheError comes out, an example takes ten seconds of CPU time, two minutes,
or more than a GiB of memory, code named in the cache is imported, or anything outside the cache and
the local copies is written.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from kdcache.codecs import stored_codec
from kdcache.columns import NUM_POSITIONS
from kdcache.commands.clean import clean_text
from kdcache.commands.verify import verification_text
from kdcache.errors import KdcacheError
from kdcache.store import Cache, LocalCopy, find_local_copy, open_cache, open_local_copy
from kdcache.store.care.leftovers import find_leftovers
from kdcache.store.format.commits import signed
from kdcache.store.report import report_text
from kdcache.tools.verify import verify_cache
from scripts.checks.small_caches import synthetic

LIMIT_S, LIMIT_WALL_S = 10, 120
LIMIT_BYTES = 1 << 30
BAIT = "bait_for_kdcache"
BAD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 4, 7, 255, 1 << 20, (1 << 20) + 1, 1 << 31, 1 << 40),
    *(1 << 53, (1 << 53) + 1, 1 << 63, 1 << 64, 10**400, -(10**400), 0.5, -0.0, 1e100, 1e308),
    *("", "x", "7", "x" * 5000, "..", "../..", "/etc/passwd", "a/b", "zarr.json", "a\0b", "\ud800"),
    *("\x1b[31m", f"{BAIT}.Codec", "os.system", "topk", "int8", "object", "uint64", "sample"),
    *("position", "entry", "0" * 12, "0" * 16, "0" * 32, "view-000", "train", "grown"),
    *([], {}, [[]], [{}], [0], [1], [-1], [10**9] * 4, list(range(100)), ["a"], {"a": 1}, {"": {}}),
]
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(BAD),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=20),
    st.recursive(st.none() | st.integers(), lambda v: st.lists(v, max_size=3), max_leaves=8),
).map(copy.deepcopy)  # what is drawn may be changed further


class TimeLimitError(BaseException):
    """An example took too long; no handler of ours catches it."""


class Forbidden(BaseException):
    """Something that no cache may bring about."""


# ------------------------------------------------------------------ what is watched

_allowed: list[Path] = []
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: no write outside of the allowed folders, no other program, no bait."""
    if not _allowed:
        return
    if event in _RUNS or (event == "import" and BAIT in str(arguments[0])):
        raise Forbidden(f"{event}: {arguments[:2]}")
    paths: list[Any] = []
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and arguments[0] != os.devnull:
            paths = [arguments[0]]
    elif event in _WRITES:
        paths = list(arguments[:2] if event in ("os.rename", "os.link") else arguments[:1])
    for path in paths:
        # The folder decides: a link's own name may be renamed, never what it leads to.
        if isinstance(path, str | bytes | os.PathLike):
            folder = Path(os.fsdecode(path)).absolute().parent.resolve()
            if folder.name != "__pycache__" and not any(
                folder.is_relative_to(allowed) for allowed in _allowed
            ):
                raise Forbidden(f"{event}: {path!r}")


_late: list[int] = []


def _alarm(number: int, _: object) -> None:
    _late.append(number)
    raise TimeLimitError(f"an example took {LIMIT_S} s of CPU time, or {LIMIT_WALL_S} s")


def _limit_time(*, is_on: bool) -> None:
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S if is_on else 0)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_WALL_S if is_on else 0)


# ------------------------------------------------------------------ mutations


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    if not isinstance(value, dict | list):
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


def change_value(data: st.DataObject, value: Any) -> Any:
    """Another value in one to three places."""
    for _ in range(data.draw(st.integers(1, 3))):
        found = list(places(value))
        if not found:
            return data.draw(VALUES)
        holder, key = data.draw(st.sampled_from(found))
        match data.draw(st.sampled_from(["set", "delete", "copy", "add", "nudge", "rename"])):
            case "set":
                holder[key] = data.draw(VALUES)
            case "delete":
                del holder[key]
            case "copy":
                other, name = data.draw(st.sampled_from(found))
                if name in other if isinstance(other, dict) else name < len(other):
                    holder[key] = copy.deepcopy(other[name])
            case "add" if isinstance(holder, list):
                holder.insert(data.draw(st.integers(0, len(holder))), data.draw(VALUES))
            case "add":
                holder[data.draw(st.text(max_size=5))] = data.draw(VALUES)
            case "nudge" if type(holder[key]) is int:
                holder[key] += data.draw(st.sampled_from([-1, 1, 4, -4, 1 << 31, 1 << 53]))
            case "rename" if isinstance(holder, dict):
                holder[data.draw(st.sampled_from([*map(str, BAD[30:40]), "x"]))] = holder.pop(key)
            case _:
                pass
    return value


def sign_again(value: Any) -> Any:
    """The value with the checksum that its other fields have, where it has one."""
    if not isinstance(value, dict) or "checksum" not in value:
        return value
    try:
        return signed({name: field for name, field in value.items() if name != "checksum"})
    except KdcacheError:  # NaN, for which there is no checksum
        return value


def change_text(data: st.DataObject, text: bytes) -> bytes:
    """Bytes that need not be JSON any more."""
    at = data.draw(st.integers(0, max(0, len(text) - 1)))
    depth = data.draw(st.sampled_from([20, 40, 1000, 100_000]))
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    return data.draw(
        st.sampled_from(
            [
                text[:at],
                text[:at] + bytes([data.draw(st.integers(0, 255))]) + text[at + 1 :],
                text + text,
                b"\xef\xbb\xbf" + text,
                b"[" * depth,
                text.replace(b"{", b'{"more":' + deep + b",", 1),
                text.replace(b":", b':NaN,"a":', 1),
                text.replace(b'"', b"\xff", 1),
                b"[" + b"[]," * 100_000 + b"0]",
                b"1" * 5000,
                b"",
            ]
        )
    )


def change_file(data: st.DataObject, file: Path, files: list[Path], outside: Path) -> None:
    """Something else in a file's place: a link, a pipe, a folder, another file's content."""
    other = data.draw(st.sampled_from(files))
    content = other.read_bytes() if other.is_file() else b""
    kind = data.draw(
        st.sampled_from(["other", "link", "outside", "loop", "dangling", "pipe", "folder", "zero"])
    )
    file.unlink()
    targets = {"link": other, "outside": outside / "precious.json", "loop": file}
    targets |= {"dangling": outside / "nothing", "zero": Path("/dev/zero")}
    if kind in targets:
        file.symlink_to(targets[kind])
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_bytes(content)


def mutate(data: st.DataObject, cache: Path, outside: Path) -> list[str]:
    """Change one to three files of a cache; which."""
    files = sorted(path for path in cache.rglob("*.json") if path.is_file())
    kinds: dict[str, list[Path]] = {}
    for file in files:  # an array's metadata are many files, and few read them
        is_manifest = file.name == "zarr.json" and file.parent.name == "view-000"
        kinds.setdefault("manifest" if is_manifest else file.name[:5], []).append(file)
    chosen = []
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(sorted(kinds)))
        file = data.draw(st.sampled_from(kinds[kind]))
        if file.is_symlink() or not file.is_file():
            continue
        how = data.draw(st.sampled_from(["value"] * 6 + ["text", "file"]))
        chosen.append(f"{file.relative_to(cache)}: {how}")
        content = file.read_bytes()
        if how == "file":
            change_file(data, file, files, outside)
            continue
        if how == "value":
            try:
                value = change_value(data, json.loads(content))
            except (ValueError, RecursionError):  # changed before
                continue
            value = sign_again(value) if data.draw(st.booleans()) else value
            changed = json.dumps(value).encode()
        else:
            changed = change_text(data, content)
        file.unlink()  # its other name is the original's
        file.write_bytes(changed)
    for index in cache.glob("*/view-000/index.json"):
        if data.draw(st.booleans()) and index.is_file():
            index.unlink()
    return chosen


# ------------------------------------------------------------------ uses


def _decode(cache: Cache, split: str, local: LocalCopy) -> None:
    """As a student reads it."""
    view = cache[split]
    rows = local.take([0, len(local) - 1, 0])
    tensors = {name: torch.from_numpy(array) for name, array in rows.items()}
    codec = stored_codec(view.manifest.codec)
    wanted = {column.name for column in codec.columns(view.manifest.num_classes)}
    if wanted <= tensors.keys():
        codec.decode(
            {name: tensors[name] for name in wanted},
            tensors[NUM_POSITIONS],
            view.manifest.num_classes,
        )


def uses(path: Path, base: Path) -> dict[str, Callable[[], object]]:
    """Everything that is done with a cache, by name; each opens it anew."""

    def read() -> None:
        cache = open_cache(path)
        for split in cache:
            view = cache[split]
            _ = (view.manifest, view.pending, view.is_complete, view.commits, view.stored_bytes)
            for commit in view.commits:
                view.read_shard(commit)
            view.read_tables()

    def train() -> None:
        cache = open_cache(path)
        for split in cache:
            local = open_local_copy(cache[split], base)
            _decode(cache, split, local)
            mapped = open_local_copy(cache[split], base, in_memory_bytes=0)
            mapped.check()
            find_local_copy(cache[split], base)

    def clean() -> str:
        found = find_leftovers(open_cache(path), older_than_s=0, local_copies=base)
        return clean_text(path, found, (), is_removing=False)

    return {
        "inspect": lambda: (
            json.dumps(report := open_cache(path).inspect()),
            report_text(report, 80),
        ),
        "verify": lambda: verification_text(verify_cache(path)),
        "read": read,
        "train": train,
        "clean": clean,
        "repair": lambda: verification_text(verify_cache(path, repair=True)),
        "read again": read,
    }


def fuzz(examples: int, number: int, folder: Path) -> Counter[tuple[str, str]]:
    """Run the examples; (use, outcome) -> how often."""
    original, outside = folder / "original", folder / "outside"
    outside.mkdir()
    (outside / "precious.json").write_text("{}")
    synthetic(original)
    found: Counter[tuple[str, str]] = Counter()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.data())
    def example(data: st.DataObject) -> None:
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        cache = shutil.copytree(original, work / "cache", copy_function=os.link)
        chosen = mutate(data, cache, outside)
        _allowed[:] = [work.resolve()]
        _limit_time(is_on=True)
        try:
            for name, use in uses(cache, work / "local").items():
                try:
                    use()
                    found[name, "went well"] += 1
                except KdcacheError as error:
                    found[name, type(error).__name__] += 1
        except BaseException:
            print(f"failed after {chosen}", file=sys.stderr)
            raise
        finally:
            _limit_time(is_on=False)
            _allowed.clear()
        assert not _late, "the alarm went off where exceptions are ignored"
        assert (outside / "precious.json").read_text() == "{}"

    example()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _alarm)
    os.fsync = lambda _: None  # nothing here loses power
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name).resolve()
        (folder / f"{BAIT}.py").write_text("class Codec: ...\n")
        sys.path.insert(0, str(folder))
        sys.addaudithook(_watch)
        before_bytes = _peak_bytes()
        resource.setrlimit(resource.RLIMIT_AS, (_address_bytes() + LIMIT_BYTES,) * 2)
        try:
            found = fuzz(options.examples, options.seed, folder)
        except (Exception, TimeLimitError, Forbidden) as error:
            print(f"FAILED: {type(error).__name__}: {str(error)[:1000]}", file=sys.stderr)
            traceback.print_tb(error.__traceback__, limit=-8)
            return 1
    _print(found)
    print(f"peak memory {_peak_bytes() / 2**20:,.0f} MiB, {before_bytes / 2**20:,.0f} MiB before")
    return 0


def _print(found: Counter[tuple[str, str]]) -> None:
    names = list(dict.fromkeys(name for name, _ in found))
    outcomes = sorted({outcome for _, outcome in found}, key=lambda o: (o != "went well", o))
    width = max(map(len, outcomes))
    print(f"{'':<{width}}" + "".join(f"{name:>12}" for name in names))
    for outcome in outcomes:
        counts = "".join(f"{found[name, outcome]:>12,}" for name in names)
        print(f"{outcome:<{width}}{counts}")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    raise SystemExit(main())
