"""What a reader is shown: the fenced blocks and command lines of the Markdown files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]
MAIN = "README.md"
GUIDES = tuple(sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
EXAMPLES = tuple(
    sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*/README.md"))
)
DOCUMENTS = (MAIN, *GUIDES, *EXAMPLES)

# Command lines that are tested where they are at home, by how they begin: what made this
# environment, checks and benchmarks (tests/scripts and others run each at a small size), demos at
# their full size, and models that would have to be fetched (tests/command_line/test_init.py).
ELSEWHERE = (
    "bash scripts/",
    "pip install ",
    "source .venv/bin/activate",
    "python -m scripts.",
    "python examples/digits/demo.py",
    "python -m examples.language_model --data",
    "python -m examples.mnist.seeds --data",
    "python -m examples.speech --data",
    "python -m examples.speech.drift --data",
)
FETCHED = re.compile(r" --(teacher|student) (hf|timm):")


def fenced(text: str, language: str) -> list[str]:
    """The fenced blocks of one language in a Markdown text, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language in a document, in order."""
    return fenced((ROOT / document).read_text(encoding="utf-8"), language)


def commands(block: str) -> list[str]:
    """The command lines of a block, without comments."""
    lines = [re.split(r"\s+#", line)[0].strip() for line in block.splitlines()]
    return [line for line in lines if line]


def is_elsewhere(line: str) -> bool:
    """Whether a command line is tested in another place."""
    return line.startswith(ELSEWHERE) or FETCHED.search(line) is not None


def run(words: list[str], folder: Path) -> str:
    """What a command prints, run as a user would in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *words],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, f"{shlex.join(words)[-400:]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# One process for all blocks: importing torch and Lightning takes longer than most commands. Every
# block begins in the first folder; a module of that folder is imported anew by each command.
COMMANDS = """
import json, os, runpy, sys
from pathlib import Path

from kdcache import cli

start, own = Path.cwd(), set(sys.path)
for block in json.loads(sys.argv[1]):
    os.chdir(start)
    for first, *words in block:
        here = Path.cwd()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name.split(".")[0] == "examples" or file.startswith(str(here)):
                del sys.modules[name]  # as in a process of its own
        sys.path[:] = [path for path in sys.path if path in own]
        if first == "cd":
            os.chdir(words[0])
        elif first == "kdcache":
            if code := cli.main(words):
                sys.exit(f"kdcache {words}: exit code {code}")
        else:
            is_module = words[0] == "-m"
            name, *sys.argv[1:] = words[is_module:]
            sys.argv[0] = name
            try:
                if is_module:
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
                else:
                    sys.path.insert(0, str(Path(name).resolve().parent))
                    runpy.run_path(name, run_name="__main__")
            except SystemExit as end:
                if end.code:
                    sys.exit(f"{first} {words}: {end.code}")
"""


# Trainings of a project of kdcache init: one epoch shows that the command works.
ONE_EPOCH = {
    "python train_teacher.py": "--epochs 1",
    "kdcache train-student -c experiment.yaml": "--trainer.max_epochs 1",
}


def run_blocks(given: Iterable[str], folder: Path) -> int:
    """Run the command lines of blocks that are not tested elsewhere; how many there were."""
    lines = [[line for line in commands(block) if not is_elsewhere(line)] for block in given]
    split = [
        [shlex.split(line) + ONE_EPOCH.get(line, "").split() for line in block] for block in lines
    ]
    assert {words[0] for block in split for words in block} <= {"cd", "kdcache", "python"}
    run(["-c", COMMANDS, json.dumps(split)], folder)
    return sum(map(len, split))
