"""The language-model demo on a tiny setting: what it trains, prints, writes and reuses."""

import contextlib
import io
import json
import math
import re
import runpy
import shutil
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import kdcache
from examples.language_model import demo, train_teacher
from examples.language_model.data import TextData
from examples.language_model.report import Results, Score, Teacher
from examples.language_model.schedule import share_of_peak
from examples.language_model.sizes import SIZES
from examples.reports.rows import Row
from kdcache import cli
from tests.examples.small_text import write_text

EXAMPLE = Path(demo.__file__).parent
SEEDS = 2


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, text):
    """A run from nothing: its folder, its words, and what every student began with."""
    out = tmp_path_factory.mktemp("language_model") / "runs"
    began, printed, train_student = [], io.StringIO(), kdcache.train_student

    def spy(student, data, cache, **options):
        weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        order = [batch["input_ids"] for batch in data.train_dataloader()]
        began.append((options["losses"], options["seed"], Path(cache).name, weights, order))
        return train_student(student, data, cache, **options)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(kdcache, "train_student", spy)
        demo.main(["--data", str(text), "--out", str(out), "--size", "tiny", "--seeds", str(SEEDS)])
    return out, printed.getvalue(), began


def test_a_run_from_nothing(first_run):
    out, printed, _ = first_run
    assert "text      WikiText-2" in printed
    assert "teacher   trained in" in printed
    assert len(re.findall(r"^cache +\S+ is complete", printed, re.M)) == 2
    results = json.loads((out / "results.json").read_text())
    # 300 tokens at random have a perplexity of 300; words of a grammar are soon told apart.
    taught = results["teacher"]["cross_entropy"]
    assert taught < math.log(300) / 2
    assert [row["name"] for row in results["students"]] == ["text", "top-k", "dense"]
    for row in results["students"]:
        assert [score["seed"] for score in row["scores"]] == list(range(SEEDS))
        for score in row["scores"]:
            assert taught < score["cross_entropy"] < math.log(300)
            assert score["teacher_kl"] > 0
            assert 0 < score["teacher_agreement"] < 1
            assert Path(score["weights"]).is_file()
        assert row["perplexity_mean"] < row["word_perplexity_mean"]
    assert [row["gain_kept"] for row in results["students"]][::2] == [0, 1]
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_perplexity_falls(first_run):
    """An epoch's figure is below that of the one before."""
    found = re.findall(r"epoch (\d)/8: .* perplexity (\S+),", first_run[1])
    assert [int(epoch) for epoch, _ in found] == list(range(1, 9))
    first, *_, last = (float(perplexity) for _, perplexity in found)
    assert last < first / 2 < 300 / 2


def test_students_of_a_seed_differ_in_their_objective_alone(first_run):
    _, _, began = first_run
    assert len(began) == len(demo.WAYS) * SEEDS
    for seed in range(SEEDS):
        (_, _, _, weights, order), *others = [one for one in began if one[1] == seed]
        for _, _, _, other_weights, other_order in others:
            assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
            assert len(order) == len(other_order)
            assert all(map(torch.equal, order, other_order))
    (first, *_), second = ([one[3] for one in began if one[1] == seed] for seed in range(2))
    assert any(not torch.equal(first[name], second[0][name]) for name in first)
    assert {(cache, *losses) for losses, _, cache, _, _ in began} == {
        ("top-k.zarr", "student_loss"),
        ("top-k.zarr", "kd_loss", "student_loss"),
        ("dense.zarr", "kd_loss", "student_loss"),
    }


def test_caches_hold_a_position_for_every_predicted_token(first_run, text):
    out, _, _ = first_run
    size = SIZES["tiny"]
    data = TextData(
        folder=str(text),
        tokenizer=str(out / "tokenizer.json"),
        max_length=size.student.max_length,
        num_paragraphs=size.num_paragraphs,
    )
    caches = json.loads((out / "results.json").read_text())["caches"]
    for split, dataset in zip(("train", "val"), data.splits, strict=True):
        top_k, dense = caches["top-k"][split], caches["dense"][split]
        assert top_k["samples"] == dense["samples"] == len(dataset)
        assert top_k["positions"] == dense["positions"] == dataset.num_predicted
        assert top_k["codec"]["k"] == size.top_k
        assert top_k["bytes_per_position"] < dense["bytes_per_position"]
        joined = kdcache.CachedDataset(
            dataset,
            out / "top-k.zarr",
            split=split,
            batch={"causal": True},
            collate_fn=data.train_dataloader().collate_fn,
        )
        assert joined.num_classes == size.teacher.vocabulary


def test_a_second_run_reuses_teacher_and_caches(first_run, text, tmp_path, capsys, monkeypatch):
    out = tmp_path / "runs"
    shutil.copytree(first_run[0], out)
    files = {
        path: path.stat().st_mtime_ns
        for name in ("top-k.zarr", "dense.zarr", "tokenizer.json", "teacher.safetensors")
        for path in (out / name, *(out / name).rglob("*"))
        if path.is_file()
    }
    monkeypatch.setattr(demo, "train_teacher", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(demo, "WAYS", demo.WAYS[:1])
    monkeypatch.setattr(demo, "draw", lambda *_: None)
    demo.main(["--data", str(text), "--out", str(out), "--size", "tiny", "--seeds", "1"])
    assert "teacher   reused" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(files) > 50
    assert (out / "students" / "run-002" / "text-0" / "student.safetensors").is_file()


def test_other_text_is_refused(first_run, tmp_path):
    """Targets of one text are not given to another, here Python's own."""
    out = tmp_path / "runs"
    shutil.copytree(first_run[0], out)
    with pytest.raises(SystemExit, match=r"(?s)error: .*The dataset has other samples"):
        demo.main(["--out", str(out), "--size", "tiny", "--seeds", "1"])


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* has no wikitext2-test\.txt and no "):
        demo.main(["--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--size", "tiny"])
    assert not (tmp_path / "runs" / "tokenizer.json").exists()


def test_the_command_line_does_the_same_without_any_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_teacher.main(["--size", "tiny", "--out", "runs/language_model/tiny"])
    assert "Python's own documentation (no folder of text was named)" in capsys.readouterr().out
    tiny = str(EXAMPLE / "tiny.yaml")
    assert cli.main(["dump-teacher", "-c", tiny]) == 0
    assert cli.main(["train-student", "-c", tiny, "--output", "runs/student"]) == 0
    record = json.loads(Path("runs/student/run.json").read_text())
    assert record["steps"] > 100
    assert record["epochs"] == 4
    assert record["metrics"]["val_cross_entropy"] < math.log(300) * 0.85
    assert "val_teacher_kl" in record["lower_bounds"]
    cache = kdcache.open_cache("runs/language_model/tiny/top-k.zarr")
    assert set(cache) == {"train", "val"}


@pytest.mark.parametrize(("name", "file"), [("small", "experiment.yaml"), ("tiny", "tiny.yaml")])
def test_experiment_files_say_what_the_demo_does(name, file):
    size, config = SIZES[name], yaml.safe_load((EXAMPLE / file).read_text())
    for section in ("teacher", "student"):
        shape = getattr(size, section)
        module, _, attribute = config[section]["class_path"].rpartition(".")
        make = getattr(import_module(module), attribute)
        assert {**asdict(shape), "dropout": 0.0} == {**config[section]["init_args"], "dropout": 0.0}
        assert make(**config[section]["init_args"]).config.n_embd == shape.width
    given = config["data"]["init_args"]
    assert given["max_length"] == size.student.max_length
    assert given["batch_size"] == size.batch_size
    assert given.get("num_paragraphs") == size.num_paragraphs
    assert config["targets"] == {"codec": "topk", "k": size.top_k, "temperatures": [1, 2]}
    assert config["distill"] == {"temperature": 1.0, "losses": demo.TAUGHT}
    assert config["optimizer"]["init_args"]["lr"] == size.learning.learning_rate
    assert config["trainer"]["max_epochs"] == size.learning.epochs
    assert config["trainer"]["gradient_clip_val"] == demo.MAX_NORM


def test_package_runs_the_demo(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["language_model", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("examples.language_model", run_name="__main__")
    assert ended.value.code == 0
    assert "--size" in capsys.readouterr().out


def test_the_learning_rate_rises_and_falls():
    shares = [share_of_peak(step, 50) for step in range(50)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert 0 < shares[-1] < 0.01
    assert share_of_peak(0, 1) == 1.0


def row(name, *divergences):
    scores = tuple(
        Score(
            seed=seed,
            cross_entropy=4.0 + value,
            teacher_kl=value,
            teacher_agreement=0.5,
            seconds=1.0,
            weights="",
        )
        for seed, value in enumerate(divergences)
    )
    return Row(name=name, losses={}, scores=scores)


def test_gain_is_measured_between_text_and_dense_targets():
    rows = (row("text", 0.5, 0.7), row("top-k", 0.4, 0.4), row("dense", 0.3, 0.3))
    results = Results(
        source="",
        tokens_per_word=2.0,
        teacher=Teacher(cross_entropy=4.0, parameters=1, remarks=()),
        student_parameters=1,
        rows=rows,
        caches={},
        settings={},
    )
    assert [results.gain_kept(one) for one in rows] == pytest.approx([0, 2 / 3, 1])
    assert results.word_perplexity(1.5) == pytest.approx(math.exp(3))
    assert rows[0].mean(lambda score: score.teacher_kl) == pytest.approx(0.6)
    assert rows[0].deviation(lambda score: score.teacher_kl) == pytest.approx(0.02**0.5)
