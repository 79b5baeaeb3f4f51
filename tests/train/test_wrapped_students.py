"""Whatever a student is wrapped in, what a run leaves loads into the student alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model
from torch import nn

from kdcache.weights import load_weights, unwrapped
from tests.train import small

pytestmark = [
    # PyTorch's own compiler, at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def compiled(model):
    return torch.compile(model, backend="eager")


def with_compiled_part(model):
    model[0] = compiled(model[0])
    return model


WRAPPINGS = {
    "bare": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda model: compiled(nn.DataParallel(model)),
    "part": with_compiled_part,
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_a_run_leaves_loads_into_the_plain_student(wrapping, train):
    wrapped = WRAPPINGS[wrapping](small.net(1))
    run = train(wrapped)
    assert type(wrapped) is type(WRAPPINGS[wrapping](small.net()))  # left as it was
    with unwrapped(wrapped) as plain:
        trained = small.weights(plain)
    loaded = small.net(2)
    load_model(loaded, str(run.student), strict=True)
    assert torch.equal(small.weights(loaded), trained)
    for path in run.output.glob("checkpoints/*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert list(state) == [f"student.{name}" for name in small.net().state_dict()]
        again = small.net(2)
        load_weights(again, path)
        assert torch.equal(small.weights(again), trained)
    assert json.loads((run.output / "run.json").read_text())["student"].endswith("Sequential")


@pytest.mark.parametrize("before", ["bare", "both", "part"])
@pytest.mark.parametrize("after", ["bare", "compiled"])
def test_a_training_goes_on_with_another_wrapping(before, after, train, tmp_path):
    whole = small.net(1)
    train(whole, trainer={"max_epochs": 2}, output=tmp_path / "whole", seed=3)
    first = train(WRAPPINGS[before](small.net(1)), output=tmp_path / "first", seed=3)
    student = small.net(4)
    train(
        WRAPPINGS[after](student),
        trainer={"max_epochs": 2},
        output=tmp_path / "second",
        resume=first.output / "checkpoints" / "last.ckpt",
        seed=3,
    )
    torch.testing.assert_close(small.weights(student), small.weights(whole))


def test_a_checkpoint_with_names_of_wrappers_is_gone_on_with(train, tmp_path):
    """As kdcache wrote them before."""
    first = train(output=tmp_path / "first")
    path = first.output / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {
        name.replace("student.", "student._orig_mod."): value
        for name, value in content["state_dict"].items()
    }
    torch.save(content, tmp_path / "old.ckpt")
    run = train(resume=tmp_path / "old.ckpt", trainer={"max_epochs": 2}, output=tmp_path / "second")
    assert run.steps == 2 * first.steps


class Pretrained(nn.Sequential):
    """Saves itself as Hugging Face's models and PEFT's do."""

    def __init__(self, error=None):
        super().__init__(*small.net(1))
        self.error = error

    def save_pretrained(self, folder):
        Path(folder).mkdir()
        torch.save(self.state_dict(), Path(folder) / "adapter.bin")
        if self.error:
            raise self.error


class Tokenizer:
    def __init__(self, error=None):
        self.error = error

    def get_vocab(self):
        return {"a": 0}

    def save_pretrained(self, folder):
        if self.error:
            raise self.error
        (Path(folder) / "tokenizer.json").write_text("{}")


def data_with(tokenizer):
    data = small.data()
    data.tokenizer = tokenizer
    return data


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_save_pretrained_is_used(wrapping, train):
    student = Pretrained()
    run = train(WRAPPINGS[wrapping](student), data_with(Tokenizer()))
    assert run.pretrained == run.output / "pretrained"
    assert {path.name for path in run.pretrained.iterdir()} == {"adapter.bin", "tokenizer.json"}
    state = torch.load(run.pretrained / "adapter.bin", weights_only=True)
    assert list(state) == list(small.net().state_dict())
    loaded = small.net(2)
    load_weights(loaded, run.student)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())


def test_no_tokenizer_is_needed(train):
    run = train(Pretrained())
    assert [path.name for path in run.pretrained.iterdir()] == ["adapter.bin"]


def test_other_students_have_no_such_folder(train):
    run = train(data=data_with(Tokenizer()))
    assert run.pretrained is None
    assert not (run.output / "pretrained").exists()


def test_a_student_that_cannot_save_itself_is_told(train, caplog):
    run = train(Pretrained(RuntimeError("out of\npaint")), data_with(Tokenizer()))
    assert "Pretrained.save_pretrained failed: RuntimeError: out of paint" in caplog.text
    assert run.pretrained is None
    load_model(small.net(2), str(run.student), strict=True)
    assert (run.output / "run.json").exists()


def test_a_tokenizer_that_cannot_be_saved_is_told(train, caplog):
    run = train(Pretrained(), data_with(Tokenizer(TypeError("no file"))))
    assert "Tokenizer.save_pretrained failed: TypeError: no file. So the tokenizer" in caplog.text
    assert [path.name for path in run.pretrained.iterdir()] == ["adapter.bin"]
