"""Who may import whom, and what stays out of this package: read from the source, without imports.

The tables below are the documentation. A room is a folder or a module directly below ``kdcache``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom: a room may import only rooms on lines below its own, so rooms on one line
# do not know each other. Stage one (dump) and stage two (train) meet on disk.
ORDER = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("predecessor",),
    ("config",),
    ("experiment",),
    ("dump", "importers", "train", "tools"),
    ("tracking",),
    ("data",),
    ("losses", "store"),
    ("codecs",),
    ("outputs", "targets", "weights"),
    ("chance", "columns", "paths", "tables", "values"),
    ("errors", "version"),
)

# Library -> the only rooms that import it; an empty set: none does.
COMMAND_LINE = {"cli", "commands"}
ONLY_IN: Mapping[str, set[str]] = {
    "zarr": {"store"},
    "numcodecs": {"store"},
    "google_crc32c": {"store"},
    "pytorch_lightning": {"train", "tracking"} | COMMAND_LINE,
    "lightning_fabric": {"dump", "train", "tracking"} | COMMAND_LINE,
    "lightning": set(),  # pytorch_lightning's classes do not mix with its
    "comet_ml": {"tracking"},
    "tensorboard": {"tracking"},  # an optional extra
    "yaml": {"config"},
    "jsonargparse": {"config"} | COMMAND_LINE,
    "transformers": set(),
    "torchvision": set(),
    "torchaudio": set(),
    "matplotlib": set(),
    "sklearn": set(),
    "pyarrow": {"importers"},  # an optional extra, to read somebody else's Parquet files
    "pickle": set(),  # a cache holds none, and nothing unpickles what somebody else wrote
    "cloudpickle": set(),
    "dill": set(),
    "joblib": set(),
    "marshal": set(),
    "shelve": set(),
}

# Importing torch takes seconds: ``kdcache --help`` and the readers of metadata do without.
WITHOUT_TORCH = {
    *("__main__", "cli", "store", "chance", "columns", "paths", "tables", "values"),
    *("errors", "version"),
}

MAX_LINES = 400

Sources = Mapping[str, str]


def room_of(path: str) -> str:
    """``kdcache/store/cache.py`` -> ``store``."""
    return Path(path).with_suffix("").parts[1]


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in a source, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from ((node.lineno, f"{dots}{node.module}.{a.name}") for a in node.names)


def _level(room: str) -> int | None:
    return next((level for level, rooms in enumerate(ORDER) if room in rooms), None)


def upward_imports(sources: Sources) -> list[str]:
    """Imports of a room that is not below one's own; rooms that stand in no line of ORDER."""
    found = []
    for path, source in sources.items():
        room = room_of(path)
        if room == "__init__":  # the package itself only names what is public
            continue
        if _level(room) is None:
            found.append(f"{path}: the room {room!r} is not in ORDER")
            continue
        for line, name in imports(source):
            parts = name.split(".")
            if parts[0] == "":
                found.append(f"{path}:{line} imports relatively ({name})")
            if parts[0] != "kdcache" or len(parts) == 1 or parts[1] == room:
                continue
            level = _level(parts[1])
            if level is None:  # a public name would load its room, whichever that is
                found.append(f"{path}:{line} imports past the rooms ({name})")
            elif level <= (_level(room) or 0):
                found.append(f"{path}:{line} imports upwards ({name})")
    return found


def strayed_libraries(sources: Sources) -> list[str]:
    """Libraries imported outside the rooms that ONLY_IN names, and torch where it is too slow."""
    found = []
    for path, source in sources.items():
        room = room_of(path)
        for line, name in imports(source):
            library = name.split(".")[0]
            allowed = ONLY_IN.get(library)
            if allowed is not None and room not in allowed:
                found.append(f"{path}:{line} imports {library}")
            if library == "torch" and room in WITHOUT_TORCH:
                found.append(f"{path}:{line} imports torch")
    return found


def unsafe_calls(sources: Sources) -> list[str]:
    """``hash()``, which is salted per process, and loading that could run what it reads."""
    found = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in ("hash", "eval", "exec"):
                found.append(f"{path}:{node.lineno} calls {called}()")
            if called == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{path}:{node.lineno} calls torch.load without weights_only=True")
            if keywords.get("allow_pickle", "False") != "False":
                found.append(f"{path}:{node.lineno} allows pickle")
    return found


def long_files(sources: Sources) -> list[str]:
    """Files that no longer fit into one head."""
    lengths = {path: source.count("\n") for path, source in sources.items()}
    return [f"{path} has {n} lines" for path, n in lengths.items() if n > MAX_LINES]


FENCES = (upward_imports, strayed_libraries, unsafe_calls, long_files)

# A small source that each fence must refuse, and what it says.
REFUSED = (
    (upward_imports, "store/x.py", "from kdcache.losses import forward_kl", "imports upwards"),
    (upward_imports, "losses/x.py", "import kdcache.store", "imports upwards"),
    (upward_imports, "dump/x.py", "from kdcache.train import train_student", "imports upwards"),
    (upward_imports, "train/x.py", "def f():\n    import kdcache.dump.loop", "imports upwards"),
    (upward_imports, "errors.py", "from kdcache import columns", "imports upwards"),
    (upward_imports, "codecs/x.py", "from . import dense", "imports relatively"),
    (upward_imports, "data/x.py", "from kdcache import open_cache", "imports past the rooms"),
    (upward_imports, "utils/x.py", "", "not in ORDER"),
    (strayed_libraries, "data/x.py", "import zarr.storage", "imports zarr"),
    (strayed_libraries, "losses/x.py", "from zarr import open_group", "imports zarr"),
    (strayed_libraries, "dump/x.py", "import pytorch_lightning as pl", "imports pytorch_lightning"),
    (strayed_libraries, "data/x.py", "from lightning_fabric import Fabric", "imports lightning_f"),
    (strayed_libraries, "train/x.py", "import lightning.pytorch", "imports lightning"),
    (strayed_libraries, "train/x.py", "import yaml", "imports yaml"),
    (strayed_libraries, "dump/x.py", "from jsonargparse import Namespace", "imports jsonargparse"),
    (strayed_libraries, "dump/x.py", "from transformers import AutoModel", "imports transformers"),
    (strayed_libraries, "data/x.py", "import torchvision", "imports torchvision"),
    (strayed_libraries, "data/x.py", "import torchaudio", "imports torchaudio"),
    (strayed_libraries, "tools/x.py", "import matplotlib.pyplot", "imports matplotlib"),
    (strayed_libraries, "data/x.py", "from sklearn import datasets", "imports sklearn"),
    (strayed_libraries, "data/x.py", "from pyarrow import parquet", "imports pyarrow"),
    (strayed_libraries, "store/x.py", "def f():\n    import pickle", "imports pickle"),
    (strayed_libraries, "store/x.py", "import torch", "imports torch"),
    (unsafe_calls, "data/x.py", "key = hash((1, 2))", "calls hash()"),
    (unsafe_calls, "data/x.py", "torch.load(path)", "weights_only=True"),
    (unsafe_calls, "data/x.py", "torch.load(path, weights_only=False)", "weights_only=True"),
    (unsafe_calls, "data/x.py", "np.load(path, allow_pickle=True)", "allows pickle"),
    (long_files, "data/x.py", "x = 1\n" * 401, "has 401 lines"),
)

ALLOWED = {
    "kdcache/__init__.py": "from kdcache.train import train_student",
    "kdcache/store/x.py": "import zarr\nimport kdcache\nfrom kdcache.columns import Column",
    "kdcache/dump/x.py": "from kdcache.version import __version__",
    "kdcache/data/x.py": "import torch\nfrom kdcache.data import keys\nxs.load(1)\nobj.hash()",
    "kdcache/train/x.py": "import pytorch_lightning\ntorch.load(path, weights_only=True)",
    "kdcache/losses/x.py": "x = 1\n" * 400,
}


@pytest.fixture(scope="module")
def sources() -> Sources:
    files = sorted((ROOT / "kdcache").rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: fence.__name__)
def test_package_keeps(fence, sources):
    assert "kdcache/store/cache.py" in sources
    assert fence(sources) == []


@pytest.mark.parametrize(("fence", "path", "source", "says"), REFUSED)
def test_fence_refuses(fence, path, source, says):
    (found,) = fence({f"kdcache/{path}": source})
    assert says in found


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: fence.__name__)
def test_fence_allows(fence):
    assert fence(ALLOWED) == []


def test_no_room_stands_in_two_lines():
    rooms = [room for line in ORDER for room in line]
    assert len(rooms) == len(set(rooms))
    assert set().union(*ONLY_IN.values()) | WITHOUT_TORCH <= set(rooms)
