"""Every command and block of the READMEs is true: it runs, and files shown are the files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import yaml

from kdcache.codecs import make_codec
from kdcache.config import parse
from kdcache.data.batch.section import parse_mapping
from kdcache.experiment import DumpExperiment, StudentExperiment
from tests.examples.idx_files import write_split
from tests.examples.small_speech import write_archive, write_checkpoint, write_folder
from tests.hang import HANG_S
from tests.importers import teacher_files

ROOT = Path(__file__).resolve().parents[1]
MAIN, DIGITS, MNIST = "README.md", "examples/digits/README.md", "examples/mnist/README.md"
LANGUAGE, SPEECH = "examples/language_model/README.md", "examples/speech/README.md"

# Tested where they are at home: set-up is what made this environment, and the demo at its full
# size takes longer than all tests (tests/examples/test_digits.py runs it small).
ELSEWHERE = (
    "bash scripts/",
    "pip install ",
    "python examples/digits/demo.py",
    "python -m examples.language_model --data",
    "python -m examples.mnist.seeds --data",
    "python -m examples.speech --data",
    "python -m examples.speech.drift --data",
)


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def commands(document: str) -> list[str]:
    """The command lines of a document, without comments."""
    lines = [
        line.split("  #")[0].strip()
        for block in blocks(document, "bash")
        for line in block.splitlines()
    ]
    return [line for line in lines if line]


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
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    return done.stdout


# One process for all commands of a document: importing torch and Lightning takes longer than most.
COMMANDS = """
import json, runpy, sys
from pathlib import Path

from kdcache import cli

for first, *words in json.loads(sys.argv[1]):
    if first == "kdcache":
        if code := cli.main(words):
            sys.exit(f"kdcache {words}: exit code {code}")
        continue
    for module in [name for name in sys.modules if name.split(".")[0] == "examples"]:
        del sys.modules[module]  # as in a process of its own
    is_module = words[0] == "-m"
    name, *sys.argv[1:] = words[is_module:]
    sys.argv[0] = name
    try:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(name).resolve().parent))
            runpy.run_path(name, run_name="__main__")
            del sys.path[0]
    except SystemExit as end:
        if end.code:
            sys.exit(f"{first} {words}: {end.code}")
"""


def run_commands(lines: list[str], folder: Path) -> int:
    """Run command lines that are not tested elsewhere; how many there were."""
    here = [shlex.split(line) for line in lines if not line.startswith(ELSEWHERE)]
    assert {first for first, *_ in here} <= {"kdcache", "python"}
    run(["-c", COMMANDS, json.dumps(here)], folder)
    return len(here)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The current folder: one with the examples, in which commands may write."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    return folder


def images_beside(folder: Path, num_train: int) -> None:
    """MNIST's files with a few random images, where the documents say they are."""
    images = folder.parent / "shared" / "data" / "mnist"
    images.mkdir(parents=True)
    write_split(images, "train", num_train, packed=True)
    write_split(images, "t10k", 20, packed=True)


def log_probabilities(folder: Path) -> None:
    """A few sequences as a server writes them, in both forms that the document names."""
    records = teacher_files.vllm_records(teacher_files.make_sequences())
    teacher_files.write_lines(folder / "train.jsonl.gz", records)
    columns = {name: [json.dumps(r[name]) for r in records] for name in records[0]}
    teacher_files.write_parquet(
        folder / "held.parquet", columns, dict.fromkeys(columns, pyarrow.string())
    )


def test_digits_commands(checkout):
    log_probabilities(checkout)
    assert run_commands(commands(MAIN), checkout) == 8
    assert run_commands(commands(DIGITS), checkout) == 5


def test_mnist_commands(checkout):
    images_beside(checkout, 600)
    assert run_commands([line for line in commands(MNIST) if "resnet" not in line], checkout) == 9


def test_resnet_commands(checkout):
    images_beside(checkout, 30)
    assert run_commands([line for line in commands(MNIST) if "resnet" in line], checkout) == 4


def test_language_model_commands(checkout):
    """In the size of seconds, on the text that comes with Python."""
    assert run_commands(commands(LANGUAGE), checkout) == 8


def test_speech_commands(checkout):
    """In the size of seconds, on made-up recordings, and with a small model as the large one."""
    write_archive(checkout.parent / "shared" / "data")
    write_checkpoint(checkout / "wav2vec2-base-960h")
    for name in ("train-clean-100", "dev-clean"):
        texts = {"19-198-0000": "SEVEN NINE", "19-198-0001": "ZERO"}
        write_folder(checkout / "LibriSpeech" / name, texts, sample_rate=16_000)
    assert run_commands(commands(SPEECH), checkout) == 9


def test_python_blocks(checkout):
    script = checkout / "readme.py"
    script.write_text("\n".join(blocks(MAIN, "python")))
    first, *summary = run([str(script)], checkout).splitlines()
    accuracy, divergence, student = first.split()
    assert summary[0].startswith("set ")
    assert "KL to teacher" in summary[0]
    assert 0 < float(accuracy) <= 1
    assert float(divergence) > 0
    assert (checkout / student).is_file()


def test_the_experiment_file_is_the_file():
    shown, *_ = blocks(MAIN, "yaml")
    assert shown == (ROOT / "examples/digits/experiment.yaml").read_text(encoding="utf-8")


def test_every_experiment_is_one():
    """Both stages take it, its batch mapping and its codec; its models are not built."""
    first, *others = map(yaml.safe_load, blocks(MAIN, "yaml"))
    shown = [first, *({**first, **block} for block in others)]  # a block may be some sections only
    for raw in shown:
        dump = parse(DumpExperiment, raw)
        train = parse(StudentExperiment, raw)
        targets = dict(dump.targets)
        codec = make_codec(targets.pop("codec"), targets)
        codec.check_temperature(train.distill.temperature)
        for side in ("teacher", "student"):
            parse_mapping(train.batch, side)
    assert len(shown) == 3


@pytest.mark.parametrize("document", [MAIN, DIGITS, MNIST, LANGUAGE, SPEECH])
def test_links_and_scripts_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [name for name in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in name]
    scripts = [line.split()[1] for line in commands(document) if line.startswith("bash ")]
    missing = [name for name in links if not ((ROOT / document).parent / name).exists()]
    missing += [name for name in scripts if not (ROOT / name).exists()]
    assert missing == []


def test_the_file_tour_names_what_is_there():
    (tour,) = [block for block in blocks(MAIN, "") if block.startswith("kdcache/\n")]
    folder, missing = ROOT, []
    for line in tour.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        base = ROOT / folder if line.startswith("  ") else ROOT
        if not line.startswith("  "):
            folder = ROOT / names[0].split()[0]
            base = ROOT
        missing += [name for name in names if not (base / name.split()[0]).exists()]
    assert missing == []
