"""Who may import whom, and what stays out of this package: read from the source, without imports.

The tables below are the documentation. A room is a folder or a module directly below ``kdcache``.
"""

from __future__ import annotations

import ast
import re
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
    ("project",),
    ("predecessor",),
    ("config",),
    ("experiment",),
    ("dump", "importers", "train", "tools"),
    ("tracking",),
    ("data", "datasets"),
    ("losses", "store"),
    ("codecs",),
    ("outputs", "targets", "weights"),
    ("columns", "paths", "tables", "values"),
    ("errors", "version"),
)

# Inside the rooms that have rooms of their own, again from top to bottom.
INSIDE: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "data": (("join",), ("samples",), ("batch",)),
    "dump": (
        ("run",),
        ("launch", "recompute"),
        ("loop",),
        ("progress", "work"),
        ("preparation",),
        ("shards",),
        ("measurements", "processes"),
    ),
    "losses": (
        ("objective",),
        ("evaluation", "fused", "own_loss"),
        ("labels", "target_losses"),
        ("divergences", "logit_distances", "loss_sum", "precision"),
    ),
    "store": (
        ("care",),
        ("local", "writer"),
        ("cache",),
        ("inspection", "report"),
        ("chance", "sums", "view"),
        ("format",),
    ),
    "tracking": (
        ("callbacks", "loggers"),
        ("comet", "metrics_file", "tensorboard", "hyperparameters", "code_version"),
        ("settings", "source_code"),
    ),
    "train": (
        ("run",),
        ("fit", "joined_data"),
        ("module",),
        ("validation",),
        ("interruption",),
        ("results",),
        ("pipelines",),
        ("optimization", "silence", "step", "trainer_options"),
    ),
}

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
    "transformers": {"datasets"},  # an optional extra
    "PIL": {"datasets"},  # an optional extra
    "timm": {"datasets"},
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
    *("__main__", "cli", "project", "store", "columns", "paths", "tables", "values"),
    *("errors", "version"),
}

MAX_LINES = 400
MAX_FILES = 10  # in one folder, beside its __init__.py

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


def _level(room: str, order: tuple[tuple[str, ...], ...] = ORDER) -> int | None:
    return next((level for level, rooms in enumerate(order) if room in rooms), None)


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


def upward_inside(sources: Sources) -> list[str]:
    """Imports of what is not below, between the files and sub-rooms of one room."""
    found = []
    for path, source in sources.items():
        room, *inner = Path(path).with_suffix("").parts[1:]
        order = INSIDE.get(room)
        if order is None or inner == ["__init__"]:  # a room's own map names what is public
            continue
        mine = _level(inner[0], order)
        if mine is None:
            found.append(f"{path}: {inner[0]!r} is not in INSIDE[{room!r}]")
            continue
        for line, name in imports(source):
            parts = name.split(".")
            if parts[:2] != ["kdcache", room] or parts[2] == inner[0]:
                continue
            level = _level(parts[2], order)
            if level is None:  # a public name of the room itself would load all of it
                found.append(f"{path}:{line} imports its own room ({name})")
            elif level <= mine:
                found.append(f"{path}:{line} imports upwards ({name})")
    return found


def circles(sources: Sources) -> list[str]:
    """Files that import each other, directly or through others."""
    files = {_module_of(path): path for path in sources}
    files.pop("kdcache", None)  # which only names what is public, and loads it when it is used
    below = {
        module: {found for _, name in imports(sources[path]) if (found := _imported(name, files))}
        for module, path in files.items()
    }
    below = {module: others - {module} for module, others in below.items()}
    # Who imports nothing that is left, or is imported by nobody left, stands in no circle.
    while below:
        imported = set().union(*below.values())
        left = {m: o & below.keys() for m, o in below.items() if m in imported and o & below.keys()}
        if left == below:
            break
        below = left
    return [f"{files[module]} stands in a circle of imports" for module in sorted(below)]


def _module_of(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def _imported(name: str, modules: Mapping[str, str]) -> str | None:
    """The module that an imported name is or is in."""
    while name not in modules:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


def crowded_rooms(sources: Sources) -> list[str]:
    """Folders with more files than one can see at a glance."""
    folders: dict[str, int] = {}
    for path in sources:
        if Path(path).name not in ("__init__.py", "__main__.py"):
            folder = str(Path(path).parent)
            folders[folder] = folders.get(folder, 0) + 1
    return [f"{folder} has {n} files" for folder, n in folders.items() if n > MAX_FILES]


def doors_without_a_word(sources: Sources) -> list[str]:
    """Files and sub-rooms that the paragraph in their room's ``__init__`` does not name."""
    found = []
    for path, source in sources.items():
        folder = Path(path).parent
        if Path(path).name != "__init__.py" or len(folder.parts) == 1:
            continue
        text = ast.get_docstring(ast.parse(source)) or ""
        words = set(re.findall(r"\w+", text))
        doors = {
            Path(other).relative_to(folder).parts[0].removesuffix(".py")
            for other in sources
            if Path(other).is_relative_to(folder) and other != path
        }
        found += [f"{path} does not say what {door} is" for door in sorted(doors - words)]
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


FENCES = (
    upward_imports,
    upward_inside,
    circles,
    crowded_rooms,
    doors_without_a_word,
    strayed_libraries,
    unsafe_calls,
    long_files,
)

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
    (upward_inside, "data/batch/x.py", "import kdcache.data.join.probes", "imports upwards"),
    (upward_inside, "store/view.py", "from kdcache.store import cache", "imports upwards"),
    (upward_inside, "store/view.py", "from kdcache.store import open_cache", "imports its own"),
    (upward_inside, "train/step/x.py", "from kdcache.train.module import M", "imports upwards"),
    (upward_inside, "train/x.py", "", "not in INSIDE"),
    (doors_without_a_word, "store/__init__.py", '"""Rooms."""', "does not say what"),
    (strayed_libraries, "data/x.py", "import zarr.storage", "imports zarr"),
    (strayed_libraries, "losses/x.py", "from zarr import open_group", "imports zarr"),
    (strayed_libraries, "dump/x.py", "import pytorch_lightning as pl", "imports pytorch_lightning"),
    (strayed_libraries, "data/x.py", "from lightning_fabric import Fabric", "imports lightning_f"),
    (strayed_libraries, "train/x.py", "import lightning.pytorch", "imports lightning"),
    (strayed_libraries, "train/x.py", "import yaml", "imports yaml"),
    (strayed_libraries, "dump/x.py", "from jsonargparse import Namespace", "imports jsonargparse"),
    (strayed_libraries, "dump/x.py", "from transformers import AutoModel", "imports transformers"),
    (strayed_libraries, "data/x.py", "import torchvision", "imports torchvision"),
    (strayed_libraries, "data/x.py", "from PIL import Image", "imports PIL"),
    (strayed_libraries, "train/x.py", "def f():\n    import timm", "imports timm"),
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
    "kdcache/store/care/x.py": "import zarr\nimport kdcache\nfrom kdcache.columns import Column",
    "kdcache/store/__init__.py": '"""care"""\nfrom kdcache.store.cache import Cache',
    "kdcache/dump/loop.py": "from kdcache.version import __version__",
    "kdcache/data/join/x.py": "import torch\nfrom kdcache.data.samples import keys\nxs.load(1)",
    "kdcache/codecs/dense.py": "obj.hash()",
    "kdcache/train/fit.py": "import pytorch_lightning\ntorch.load(path, weights_only=True)",
    "kdcache/losses/objective.py": "x = 1\n" * 400,
}


@pytest.fixture(scope="module")
def sources() -> Sources:
    templates = ROOT / "kdcache/project/templates"  # files of a user's project, run in test_init
    files = sorted(set((ROOT / "kdcache").rglob("*.py")) - set(templates.rglob("*.py")))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: fence.__name__)
def test_package_keeps(fence, sources):
    assert "kdcache/store/cache.py" in sources
    assert fence(sources) == []


@pytest.mark.parametrize(("fence", "path", "source", "says"), REFUSED)
def test_fence_refuses(fence, path, source, says):
    beside = {"kdcache/store/format.py": ""} if fence is doors_without_a_word else {}
    (found,) = fence({f"kdcache/{path}": source, **beside})
    assert says in found


def test_circles_of_any_length_are_found():
    one = {"kdcache/a.py": "import kdcache.b", "kdcache/b.py": "def f():\n    import kdcache.a"}
    assert len(circles(one)) == 2
    three = {
        "kdcache/x/__init__.py": "",
        "kdcache/x/a.py": "from kdcache.x import b",
        "kdcache/x/b.py": "from kdcache.x.c import name",
        "kdcache/x/c.py": "from kdcache.x import a",
        "kdcache/top.py": "from kdcache.x import a",
    }
    assert circles(three) == [
        f"kdcache/x/{name}.py stands in a circle of imports" for name in "abc"
    ]
    assert circles({**three, "kdcache/x/c.py": "import torch"}) == []


def test_a_room_of_more_than_ten_files_is_found():
    files = {f"kdcache/x/{number}.py": "" for number in range(MAX_FILES)}
    assert crowded_rooms({**files, "kdcache/x/__init__.py": ""}) == []
    assert crowded_rooms({**files, "kdcache/x/y.py": ""}) == ["kdcache/x has 11 files"]


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: fence.__name__)
def test_fence_allows(fence):
    assert fence(ALLOWED) == []


@pytest.mark.parametrize("order", [ORDER, *INSIDE.values()])
def test_no_room_stands_in_two_lines(order):
    listed = [room for line in order for room in line]
    assert len(listed) == len(set(listed))


def test_libraries_belong_to_rooms_that_are_there():
    rooms = [room for line in ORDER for room in line]
    assert set().union(*ONLY_IN.values()) | WITHOUT_TORCH <= set(rooms)
