"""Every Python block runs, every YAML block is an experiment, every link leads somewhere."""

from __future__ import annotations

import dataclasses
import re
import typing

import pytest
import yaml

from kdcache.codecs import make_codec
from kdcache.config import parse
from kdcache.config.files import spelt_out
from kdcache.data.batch.section import parse_mapping
from kdcache.experiment import DumpExperiment, StudentExperiment
from tests.docs.data import photos
from tests.docs.documents import DOCUMENTS, MAIN, ROOT, blocks, commands, run

PYTHON = tuple(document for document in DOCUMENTS if blocks(document, "python"))
YAML = tuple(document for document in DOCUMENTS if blocks(document, "yaml"))
COMPLETE = "docs/experiment-files.md"

DATA = {"cache": "teacher.zarr", "data": {"class_path": "my_data.Data"}}
MODELS = {"teacher": {"class_path": "my.Teacher"}, "student": {"class_path": "my.Student"}}
MAX_LINES = 170


def test_there_are_python_blocks():
    assert {MAIN, "docs/python.md"} <= set(PYTHON)


# One process for all documents: importing torch and Lightning takes longer than most of them.
SCRIPTS = """
import os, runpy, sys

for folder in sys.argv[1:]:
    os.chdir(folder)
    print("document", folder)
    runpy.run_path("document.py", run_name="__main__")
"""


def test_python_blocks(tmp_path):
    folders = {document: tmp_path / document.replace("/", "-") for document in PYTHON}
    for document, folder in folders.items():
        photos(folder)
        code = "\n".join(blocks(document, "python"))
        (folder / "document.py").write_text(code, encoding="utf-8")
    printed = run(["-c", SCRIPTS, *map(str, folders.values())], tmp_path)
    parts = [part.partition("\n") for part in f"\n{printed}".split("\ndocument ")[1:]]
    told = {folder: text for folder, _, text in parts}
    assert told.keys() == {str(folder) for folder in folders.values()}
    scores, weights = told[str(folders[MAIN])].splitlines()[-2:]
    accuracy, divergence = map(float, scores.split())
    assert 0.7 < accuracy <= 1  # of ten classes, after thirty epochs
    assert 0 < divergence < 1
    assert (folders[MAIN] / weights).is_file()


@pytest.mark.parametrize("document", YAML)
def test_every_experiment_is_one(document):
    """Both stages take it, its batch mapping and its codec; its models are not built."""
    for block in blocks(document, "yaml"):
        shown = spelt_out(yaml.safe_load(block))
        raw = {**DATA, **MODELS, **shown}  # a block may be some sections only
        dump = parse(DumpExperiment, raw)
        train = parse(StudentExperiment, raw)
        targets = dict(dump.targets)
        codec = make_codec(targets.pop("codec"), targets)
        codec.check_temperature(train.distill.temperature)
        for side in ("teacher", "student"):
            parse_mapping(train.batch, side)


def test_the_complete_experiment_has_every_key_with_its_default():
    """But for what has no default, and what its comments say otherwise of."""
    (block,) = blocks(COMPLETE, "yaml")
    raw = spelt_out(yaml.safe_load(block))
    shown = {kind: parse(kind, raw) for kind in (DumpExperiment, StudentExperiment)}
    known: set[str] = set()
    for kind, experiment in shown.items():
        known |= set(typing.get_type_hints(kind))
        for item in dataclasses.fields(kind):
            value = getattr(experiment, item.name)
            default = (
                item.default_factory()
                if item.default_factory is not dataclasses.MISSING
                else item.default
            )
            if dataclasses.is_dataclass(value):
                assert raw[item.name].keys() == set(typing.get_type_hints(type(value)))
                if item.name != "tracking":  # csv is what null means
                    assert value == default
            elif isinstance(default, bool | int) or (value is None and default is None):
                assert value == default, item.name
    assert raw.keys() == known
    assert raw["tracking"]["comet"].keys() == set(
        typing.get_type_hints(type(shown[StudentExperiment].tracking.comet))
    )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_scripts_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [name for name in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in name]
    lines = [line for block in blocks(document, "bash") for line in commands(block)]
    files = [line.split()[1] for line in lines if line.startswith("bash ")]
    modules = [line.split()[2] for line in lines if line.startswith("python -m ")]
    missing = [name for name in links if not ((ROOT / document).parent / name).exists()]
    missing += [name for name in files if not (ROOT / name).exists()]
    for name in modules:
        path = ROOT / name.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_are_there(document):
    """Paths of the repository in code style, such as ``tests/train/test_run.py``."""
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`((?:kdcache|examples|tests|scripts|docs)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_is_short():
    assert (ROOT / MAIN).read_text(encoding="utf-8").count("\n") <= MAX_LINES
