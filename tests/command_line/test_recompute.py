"""``kdcache verify CACHE --recompute N -c FILE``: what is asked, printed, and returned."""

from __future__ import annotations

import json
import sys

import pytest

from kdcache.cli import main
from kdcache.commands.verify import split_words

CACHE = "runs/teacher.zarr"
AGAIN = ["verify", CACHE, "--recompute", "5", "-c", "experiment.yaml"]

# The teacher of the dump but for one weight, and the data with one sample scaled.
OTHER_TEACHER = """
import torch
import user_teacher

def teacher(by: float):
    made = user_teacher.teacher()
    with torch.no_grad():
        made.weight[0, 0] += by
    return made
"""


@pytest.fixture
def here(here, monkeypatch):
    (here / "other_teacher.py").write_text(OTHER_TEACHER)
    sys.modules.pop("other_teacher", None)
    return here


def other_teacher(by):
    return ["--teacher", f"{{class_path: other_teacher.teacher, init_args: {{by: {by}}}}}"]


def test_the_same_teacher(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(AGAIN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{CACHE}: sound.")
    width = max(map(len, (line.split("  ")[0] for line in lines[2:])))
    rows = {line[:width].strip(): line[width:].split() for line in lines[2:]}
    assert rows["teacher run again"] == ["train", "test"]
    assert rows["samples drawn"] == ["5", "5"]
    assert rows["drift, mean KL"] == rows["drift, largest KL"] == ["0", "nats", "0", "nats"]
    assert rows["drift, largest probability"] == ["0", "0"]
    assert all(float(cell) < 1e-3 for cell in rows["stored against logits, largest probability"])
    assert lines[-1].startswith("stored against logits")


def test_numbers_as_json(here, capsys):
    assert main([*AGAIN, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sound"]
    assert report["recomputed"]["tolerance_nats"] == 1e-3
    found = report["recomputed"]["splits"]["train"]
    assert found["drift"] == {"mean_kl": 0, "max_kl": 0, "max_difference": 0}
    assert found["codec"]["mean_kl"] < 1e-6
    assert (found["drawn"], found["changed"], found["drifted"]) == (5, {}, False)
    assert found["samples"] == 16 * found["batches"] == 16 * found["identical_batches"]


def test_the_seed_chooses_the_samples(here, capsys):
    found = []
    for seed in ("0", "0", "1", "2", "3"):
        assert main([*AGAIN, "--seed", seed, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["recomputed"]["splits"]["train"])
    assert found[0] == found[1]
    assert any(other != found[0] for other in found[2:])


@pytest.mark.parametrize(("by", "drifted"), [(0.01, False), (3.0, True)])
def test_a_teacher_with_another_weight(here, capsys, by, drifted):
    assert main([*AGAIN, *other_teacher(by)]) == 1
    text = capsys.readouterr().out
    assert "- train, test: dumped with other settings than this run's" in text
    assert "  identity.teacher.weights  cache xxh3:" in text
    assert ("train: the teacher no longer says what is stored: mean drift" in text) == drifted
    assert main([*AGAIN, *other_teacher(by), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["recomputed"]["splits"]["train"]
    assert set(found["changed"]) == {"identity.teacher.weights"}
    assert found["changed"]["identity.teacher.weights"]["cache"].startswith("xxh3:")
    assert found["drift"]["max_kl"] > 0
    assert found["drifted"] == drifted


def test_other_data(here, capsys):
    words = ["--recompute", "99", "--data", "{class_path: user_module.Data, init_args: {scale: 2}}"]
    assert main([*AGAIN, *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("FingerprintMismatchError: sample 17 of split 'train' is not what the")
    assert "Traceback" not in error


def test_other_settings_of_the_run(here, capsys):
    assert main([*AGAIN, "--targets.k=1", "--dump.precision", "bf16-mixed"]) == 1
    text = capsys.readouterr().out
    assert "codec.k             cache 2   this run 1" in text
    assert "identity.precision  cache 32-true   this run bf16-mixed" in text
    assert "no longer says" not in text


def test_the_cache_is_the_one_that_is_named(here, capsys):
    """Not the experiment's own: a cache may have been moved or copied."""
    (here / "runs").rename(here / "elsewhere")
    assert main(["verify", "elsewhere/teacher.zarr", *AGAIN[2:]]) == 0
    assert not (here / "runs").exists()


def test_a_damaged_cache_is_not_recomputed(here, capsys):
    values = next((here / CACHE / "train").rglob("ids/c/0/0"))
    values.write_bytes(values.read_bytes()[:-1])
    (here / "imported-by").unlink(missing_ok=True)
    sys.modules.pop("user_teacher", None)
    assert main(AGAIN) == 1
    assert "--recompute waits until the cache is sound" in capsys.readouterr().out
    assert not (here / "imported-by").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-c", "experiment.yaml"], "-c is for --recompute N"),
        (["--teacher.by=3"], "--teacher.by=3 is for --recompute N"),
        (["--recompute", "3"], "cache"),
        (["--recompute", "0", "-c", "experiment.yaml"], "not 0"),
        (["--recompute", "3", "-c", "experiment.yaml", "--seed", "-1"], "seed"),
        (["--recompute", "some", "-c", "experiment.yaml"], "invalid int value: 'some'"),
        (["--recompute", "3", "-c", "nowhere.yaml"], "nowhere.yaml"),
        (["--recompute", "3", "-c", "experiment.yaml", "--targets.kk", "3"], "kk"),
        (["--recompute", "3", "-c", "experiment.yaml", "--print_config"], "--print_config"),
    ],
)
def test_wrong_words(here, capsys, words, says):
    assert main(["verify", CACHE, *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "own", "experiment"),
    [
        ("c.zarr", "c.zarr", ""),
        ("--recompute 3 -c e.yaml c.zarr", "--recompute 3 c.zarr", "-c e.yaml"),
        ("--config=e.yaml --seed 2 c.zarr", "--seed 2 c.zarr", "--config=e.yaml"),
        ("c.zarr --a.b 1 --json --a.c=2", "c.zarr --json", "--a.b 1 --a.c=2"),
        ("c.zarr --accelerator cpu --repair", "c.zarr --repair", "--accelerator cpu"),
        ("--progress false c.zarr -c", "c.zarr", "--progress false -c"),
        ("../a.b/c.zarr --local-copy", "../a.b/c.zarr --local-copy", ""),
        ("--targets.x --json", "--json", "--targets.x"),
    ],
)
def test_whose_words_are_whose(words, own, experiment):
    assert split_words(words.split()) == (own.split(), experiment.split())
