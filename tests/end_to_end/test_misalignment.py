"""Every way in which samples and targets can come apart, refused before a step that would use it.

One table: what is wrong with the data (see ``misaligned``), and what the error says, which names
a sample or a class. Each is tried through ``train_student`` and through a plain loop; most of them
through the command line.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import misaligned
import pytest
import torch
from misaligned import BATCH, NUM

import kdcache
from kdcache import CachedDataset
from kdcache.cli import main
from kdcache.data.join import probes
from kdcache.data.join.probes import check_join
from kdcache.errors import KdcacheError
from kdcache.losses import kd_loss

SAMPLE = r"sample {} of split 'train' is not what the teacher saw"


class Case(NamedTuple):
    """What is expected.

    Attributes:
        says: a pattern of the error.
        data: the class of the data.
        steps: optimiser steps of a plain loop on right batches, before the wrong one comes.
        is_probed: only the start-up check finds it: a plain loop has to call ``check_join``.
    """

    says: str
    data: type = misaligned.Data
    steps: int = 0
    is_probed: bool = False


BY_NAME, TEXTS = misaligned.ByName, misaligned.Texts
TABLE = {
    "shuffled": Case(SAMPLE.format(0) + ".*now as sample .* reordered"),
    "sorted by label": Case(SAMPLE.format(r"\d+") + ".*reordered"),
    "shifted by one": Case(SAMPLE.format(0) + ".*what is sample 0 now as sample 1: .*shifted"),
    "grown at the front, cut at the end": Case(SAMPLE.format(0) + ".*sample 1 now as sample 0"),
    "grown at the front": Case("401 samples.*with 400.* longer .*sample 400 is the first without"),
    "a subset": Case("200 samples.*with 400.* shorter .*sample 200 is the first without"),
    "a subset as long as the dataset": Case(
        SAMPLE.format(r"(\d+)") + r".*sample \1 now as sample .*filtered"
    ),
    "training and validation set exchanged": Case(
        SAMPLE.format(0) + ".*as sample 0 of split 'val': wrong split"
    ),
    "flipped": Case(SAMPLE.format(0) + ".*edited, or its decoding or transform"),
    "normalised otherwise": Case(SAMPLE.format(0) + ".*values differ by up to"),
    "decoded otherwise, by low bits": Case(SAMPLE.format(0) + r".*differ by up to \S+e-0[67]"),
    "another dtype": Case(SAMPLE.format(0) + ".*dtype was float32, is float64"),
    "another shape": Case(SAMPLE.format(0) + r".*shape was \[64\], is \[1, 64\]"),
    "one sample edited": Case(SAMPLE.format(64) + ".*edited", steps=2),
    "augmented anew at every draw": Case(SAMPLE.format(0) + ".*the dataset is random"),
    "a collate function that sorts": Case("collate_fn reorders.*that of sample [0-9]+ "),
    "a collate function that drops one": Case(
        r"collate_fn made .*31\] rows of 32 samples \(the first is sample 0|"
        "collate_fn made 31 rows of 32 samples"
    ),
    "a collate function that replaces one": Case("collate_fn reorders.*that of sample [0-9]+ "),
    "a collate function that shuffles": Case(r"collate_fn is random: the same samples \(0, "),
    "a collate function that augments": Case(r"collate_fn is random: the same samples \(0, "),
    "class names exchanged": Case("class 1 is 'one' in the cache and 'two'", is_probed=True),
    "one class more": Case(r"class 10 is '\(none\)' in the cache and 'ten'", is_probed=True),
    "class names of the dataset exchanged": Case(
        "class 8 is 'eight' in the cache and 'nine'", is_probed=True
    ),
    "labels permuted": Case(
        r"cross-entropy.*labelled class (\d) \('\w+'\), .* for class (?!\1)\d", is_probed=True
    ),
    "labels of other samples": Case("cross-entropy.*labelled class .* for class", is_probed=True),
    "two classes exchanged": Case(
        r"labelled class (3 \('three'\), .* for class 8|8 \('eight'\), .* for class 3)",
        is_probed=True,
    ),
    "names given anew": Case(SAMPLE.format(0), BY_NAME),
    "a name that was not dumped": Case("sample 40 is not in split 'train'", BY_NAME, steps=1),
    "names exchanged": Case(SAMPLE.format(5), BY_NAME),
    "tokenised otherwise": Case(SAMPLE.format(0) + ".*values differ by up to", TEXTS),
    "one word got another id": Case(SAMPLE.format(r"\d+"), TEXTS),
    "cut off earlier": Case(SAMPLE.format(r"\d+") + ".*edited", TEXTS),
    "padding counted": Case("the mask of sample 0 counts 10 positions, the teacher had 2", TEXTS),
    "sorted by length in the collate function": Case("collate_fn reorders.*sample [0-9]+", TEXTS),
}
"""Name of what is wrong -> what is expected."""

# What a split beside the training set can do; only train_student looks at it.
OF_VALIDATION = {
    "validation set exchanged for the training set": (
        "sample 0 of split 'val' is not .*as sample 0 of split 'train': wrong split"
    ),
    "validation set edited": "sample 9 of split 'val' is not what the teacher saw",
}


class Counting(torch.optim.SGD):
    """Counts its steps, of all of its kind."""

    steps = 0

    def step(self, closure=None):
        type(self).steps += 1
        return super().step(closure)


def make_optimizer(parameters):
    return Counting(parameters, lr=0.1)


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    monkeypatch.setattr(Counting, "steps", 0)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Class of the data -> its cache."""
    folder = tmp_path_factory.mktemp("misaligned")
    of_kind = {
        misaligned.Data: (misaligned.teacher(), {}),
        BY_NAME: (misaligned.teacher(), {"key": "field:2", "batch": {"inputs": [0], "labels": 1}}),
        TEXTS: (misaligned.tagger(), {"batch": MASKED}),
    }
    for kind, (teacher, options) in of_kind.items():
        data = kind()
        loaders = {"train": data.train_dataloader(), **data.val_dataloader()}
        kdcache.dump_teacher(
            teacher,
            loaders,
            folder / kind.__name__,
            class_names=misaligned.NAMES,
            samples_per_shard=100,
            progress=False,
            **options,
        )
    return {kind: folder / kind.__name__ for kind in of_kind}


MASKED = {
    "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"},
    "labels": "labels",
    "mask": "attention_mask",
}


def mapping_of(kind):
    return MASKED if kind is TEXTS else {"inputs": [0], "labels": 1}


def make_student(kind):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return misaligned.Tagger() if kind is TEXTS else misaligned.Net()


def weights(module):
    return torch.cat([parameter.detach().reshape(-1).clone() for parameter in module.parameters()])


def train(kind, data, cache, folder, *, student=None, epochs=1):
    student = student or make_student(kind)
    kdcache.train_student(
        student,
        data,
        cache,
        batch=mapping_of(kind),
        optimizer=make_optimizer,
        output=folder / "run",
        progress=False,
        trainer={
            "max_epochs": epochs,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        },
    )
    return student


def plain_loop(kind, data, cache, *, student=None, checked=False, most=None):
    """What a user writes; ``most`` batches, all of them if None."""
    student = student or make_student(kind)
    loader = data.train_dataloader()
    joined = CachedDataset(
        loader.dataset, cache, batch=mapping_of(kind), collate_fn=loader.collate_fn
    )
    if checked:
        check_join(joined, getattr(data, "class_names", ()))
    optimizer = make_optimizer(student.parameters())
    for number, (batch, targets) in enumerate(joined.loader_like(loader)):
        if number == most:
            break
        if kind is TEXTS:
            logits = student(batch["input_ids"], batch["attention_mask"])
            logits = logits[batch["attention_mask"].bool()]
        else:
            logits = student(batch[0])
        loss = kd_loss(logits, targets, 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


def assert_says(error, pattern):
    text = str(error)
    assert re.search(pattern, text, re.DOTALL), text
    assert re.search(r"\b(sample|class) \d+|samples \(\d+|rows of 32 samples", text)


def test_the_table_is_whole():
    assert set(TABLE) | set(OF_VALIDATION) == set(misaligned.WRONG)


@pytest.mark.parametrize("kind", [misaligned.Data, BY_NAME, TEXTS])
def test_right_data_is_trained_on(kind, caches, tmp_path):
    """The controls: otherwise the refusals below would prove nothing."""
    trained = train(kind, kind(), caches[kind], tmp_path)
    assert Counting.steps == -(-NUM // BATCH)
    assert not torch.equal(weights(trained), weights(make_student(kind)))
    looped = plain_loop(kind, kind(), caches[kind], checked=True)
    assert Counting.steps == 2 * -(-NUM // BATCH)
    torch.testing.assert_close(weights(looped), weights(trained), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", TABLE)
def test_train_student_refuses(wrong, caches, tmp_path):
    case = TABLE[wrong]
    student = make_student(case.data)
    before = weights(student)
    with pytest.raises(KdcacheError) as caught:
        train(case.data, case.data(wrong), caches[case.data], tmp_path, student=student)
    assert_says(caught.value, case.says)
    assert Counting.steps == 0
    assert torch.equal(weights(student), before)
    assert not (tmp_path / "run" / "student.safetensors").exists()


@pytest.mark.parametrize("wrong", TABLE)
def test_a_plain_loop_refuses(wrong, caches):
    case = TABLE[wrong]
    data, cache = case.data(wrong), caches[case.data]
    student = make_student(case.data)
    with pytest.raises(KdcacheError) as caught:
        plain_loop(case.data, data, cache, student=student, checked=case.is_probed)
    assert_says(caught.value, case.says)
    assert Counting.steps == case.steps
    # The steps before it had nothing but right batches.
    expected = plain_loop(case.data, case.data(), cache, most=case.steps)
    assert torch.equal(weights(student), weights(expected))


@pytest.mark.parametrize("wrong", OF_VALIDATION)
def test_train_student_refuses_a_validation_set(wrong, caches, tmp_path):
    kind = misaligned.Data
    student = make_student(kind)
    before = weights(student)
    with pytest.raises(KdcacheError) as caught:
        train(kind, kind(wrong), caches[kind], tmp_path, student=student)
    assert_says(caught.value, OF_VALIDATION[wrong])
    assert Counting.steps == 0
    assert torch.equal(weights(student), before)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_sample_that_no_probe_met_is_refused_when_it_is_joined(
    num_workers, caches, tmp_path, monkeypatch
):
    """Training is under way then: every step that was made had right targets, none had this."""
    monkeypatch.setattr(probes, "NUM_PROBES", 8)
    kind = misaligned.Data
    data = kind("one sample edited")

    class Loaders:
        class_names = data.class_names

        def train_dataloader(self):
            options = {"batch_size": BATCH, "num_workers": num_workers}
            return torch.utils.data.DataLoader(data.train, **options)

    student = make_student(kind)
    with pytest.raises(KdcacheError) as caught:
        train(kind, Loaders(), caches[kind], tmp_path, student=student)
    assert_says(caught.value, SAMPLE.format(64))
    assert Counting.steps <= 2  # Lightning asks for a batch before it makes the step before it
    expected = plain_loop(kind, kind(), caches[kind], most=Counting.steps)
    torch.testing.assert_close(weights(student), weights(expected), rtol=1e-5, atol=1e-7)
    assert not (tmp_path / "run" / "student.safetensors").exists()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_collate_function_is_looked_at_wherever_it_runs(num_workers, batch_size, caches):
    """In a worker too, and where nobody has called a start-up check."""
    data = misaligned.Data("a collate function that augments")
    joined = CachedDataset(data.train, caches[misaligned.Data], collate_fn=data.collate)
    loader = torch.utils.data.DataLoader(
        joined, batch_size, num_workers=num_workers, collate_fn=joined.collate_fn
    )
    with pytest.raises(KdcacheError, match=r"collate_fn is random: the same samples \(0"):
        next(iter(loader))


def test_a_sorting_collate_function_is_found_behind_a_batch_of_one(caches):
    data = misaligned.Data("a collate function that sorts")
    joined = CachedDataset(data.train, caches[misaligned.Data], collate_fn=data.collate)
    loader = torch.utils.data.DataLoader(
        joined, batch_sampler=[[3], [5, 6, 7, 8, 9]], collate_fn=joined.collate_fn
    )
    batches = iter(loader)
    next(batches)
    with pytest.raises(KdcacheError, match=r"collate_fn reorders .*that of sample [5-9] "):
        next(batches)


def test_targets_of_another_cache_are_refused(caches, tmp_path):
    """Shards of the same data, classes, codec and length, by another teacher."""
    kind, cache, other = misaligned.Data, tmp_path / "cache", tmp_path / "other"
    shutil.copytree(caches[kind], cache)
    data = kind()
    loaders = {"train": data.train_dataloader(), **data.val_dataloader()}
    turned = misaligned.teacher()
    with torch.no_grad():
        turned[2].weight.copy_(turned[2].weight.roll(1, 0))
    options = {"class_names": misaligned.NAMES, "samples_per_shard": 100, "progress": False}
    kdcache.dump_teacher(turned, loaders, other, batch={"inputs": [0], "labels": 1}, **options)
    (mine,), (theirs,) = (
        list((path / "train" / "view-000").glob("shard-000002.*")) for path in (cache, other)
    )
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    student = make_student(kind)
    before = weights(student)
    with pytest.raises(KdcacheError, match=r"shard-000002.*values.*its commit says|damaged"):
        train(kind, data, cache, tmp_path, student=student)
    with pytest.raises(KdcacheError, match=r"shard-000002.*values.*its commit says|damaged"):
        plain_loop(kind, data, cache, student=student)
    assert Counting.steps == 0
    assert torch.equal(weights(student), before)


EXPERIMENT = """
cache: {cache}
data: {{class_path: misaligned.Data}}
student: {{class_path: misaligned.Net}}
batch: {{inputs: [0], labels: 1}}
trainer: {{max_epochs: 1, accelerator: cpu}}
output: run
progress: false
"""


@pytest.fixture
def folder(caches, tmp_path, monkeypatch):
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT.format(cache=caches[misaligned.Data]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.setdefault("misaligned", misaligned)
    return tmp_path


ON_THE_COMMAND_LINE = [name for name, case in TABLE.items() if case.data is misaligned.Data]


@pytest.mark.parametrize("wrong", [*ON_THE_COMMAND_LINE, *OF_VALIDATION])
def test_the_command_line_refuses(wrong, folder, capsys):
    words = ["train-student", "-c", "experiment.yaml", "--data.wrong", wrong]
    assert main(words) == 1
    text = capsys.readouterr().err
    assert_says(text, TABLE[wrong].says if wrong in TABLE else OF_VALIDATION[wrong])
    assert "Traceback" not in text
    assert not (folder / "run" / "student.safetensors").exists()
