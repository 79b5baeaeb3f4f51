"""What a model says that it takes by name, and what of a batch it is given then."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

import kdcache
from kdcache.data.batch.mapping import BatchMapping
from kdcache.data.batch.signature import Signature
from kdcache.errors import DataError, UsageError
from tests.data import toys
from tests.train import small

X, Y, T = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.randn(3, 2)
TEXT = ["a", "b", "c"]


class Both(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.inner = toys.make_teacher(seed)

    def forward(self, image, tabular=None, *, temperature=1.0):
        return self.inner(image if tabular is None else image + tabular) / temperature


class Image(nn.Module):
    """Another signature over the same columns."""

    def __init__(self, seed=1):
        super().__init__()
        self.inner = toys.make_teacher(seed)

    def forward(self, image):
        return self.inner(image)


class Open(nn.Module):
    def forward(self, image, **options):
        return image


class Anything(nn.Module):
    def forward(self, *args, **kwargs):
        return args, kwargs


class ByPlace(nn.Module):
    def forward(self, image, /, tabular):
        return image, tabular


class NeedsLabels(nn.Module):
    def forward(self, image, labels):
        return image, labels


class WithLabels(nn.Module):
    def forward(self, image, labels=None):
        return image, labels


class OfTransformers(nn.Module):
    main_input_name = "input_ids"

    def forward(self, input_ids=None, attention_mask=None, labels=None, **options):
        return input_ids


class Wrapper(nn.Module):
    """A user's own, that does something with what it is given."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class Adapted(nn.Module):
    """As a PeftModel is made that is of no known task."""

    __module__ = "peft.peft_model"

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def get_base_model(self):
        return self.base_model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


def compiled(model):
    return torch.compile(model, backend="eager")


def hooked(model):
    """As accelerate does where a model lies on several devices."""
    old = model.forward
    model.forward = functools.update_wrapper(
        functools.partial(lambda m, *a, **k: old(*a, **k), model), old
    )
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        nn.DataParallel,
        compiled,
        lambda model: compiled(nn.DataParallel(model)),
        Adapted,
        hooked,
        lambda model: model.forward,
    ],
    ids=["plain", "DataParallel", "compiled", "both", "PEFT", "with hooks", "method"],
)
def test_is_found_under_what_wraps_the_model(wrap):
    found = Signature.of(wrap(Both()))
    assert {"image", "tabular"} <= found.names
    assert found.required == {"image"}
    assert found.others == "refused"


@pytest.mark.parametrize(
    "model", [Anything(), Wrapper(Both()), ByPlace(), nn.DataParallel(Anything()), dict.get]
)
def test_a_model_that_does_not_say(model):
    assert Signature.of(model) is None


def chosen(model, batch, **mapping):
    return BatchMapping(**mapping).bound(model).resolve(batch)


@pytest.mark.parametrize(
    ("model", "batch", "inputs", "labels"),
    [
        (Both(), {"image": X, "tabular": T, "label": Y}, ["image", "tabular"], "label"),
        (Both(), {"tabular": T, "label": Y, "image": X}, ["tabular", "image"], "label"),
        (Both(), {"image": X, "idx": Y, "text": TEXT}, ["image"], None),
        (Both(), {"image": X, "temperature": Y, "labels": Y}, ["image", "temperature"], "labels"),
        (NeedsLabels(), {"image": X, "labels": Y}, ["image", "labels"], "labels"),
        (WithLabels(), {"image": X, "labels": Y}, ["image"], "labels"),
        (Open(), {"image": X, "label": Y}, ["image"], "label"),
        (
            OfTransformers(),
            {"idx": Y, "sentence": TEXT, "input_ids": X, "attention_mask": X, "labels": Y},
            ["input_ids", "attention_mask"],
            "labels",
        ),
        # A name that it does not name may still mean something to what its **kwargs go to.
        (
            OfTransformers(),
            {"input_ids": X, "token_type_ids": X},
            ["input_ids", "token_type_ids"],
            None,
        ),
        (Image(), {"image": X, "attention_mask": X, "label": Y}, ["image"], "label"),
        (Anything(), {"pixel_values": X, "label": Y}, ["pixel_values"], "label"),
    ],
)
def test_a_batch_gives_what_the_model_takes(model, batch, inputs, labels):
    found = chosen(model, batch)
    assert list(found.inputs) == inputs
    assert found.labels == labels
    left = set(batch) - set(inputs) - {labels}
    assert set(found.left_out) == left
    assert all(name in found.note for name in left)


@pytest.mark.parametrize(
    ("model", "batch", "says"),
    [
        (Image(), {"pixels": X, "label": Y}, r"forward takes image, of which image must be given"),
        (Both(), {"tabular": X, "label": Y}, r"image must be given"),
        (Open(), {"image": X, "tabular": T, "label": Y}, r"\*\*kwargs, which may be tabular"),
        (OfTransformers(), {"image": X, "label": Y}, r"forward takes attention_mask, input_ids"),
        (Anything(), {"image": X, "label": Y}, r"cannot tell"),
        (
            Image(),
            {"image": X, "label": Y, "labels": Y},
            r"which of labels and label are the labels",
        ),
        (nn.Linear(4, 2), {"input_ids": X, "labels": Y}, r"forward takes input, of which"),
        (NeedsLabels(), (X, Y), r"must be given image, labels.*inputs: all"),
        (NeedsLabels(), X, r"must be given image, labels"),
    ],
)
def test_what_cannot_be_told_is_refused(model, batch, says):
    with pytest.raises(DataError, match=says):
        chosen(model, batch)


def test_lists_that_pytorch_has_turned_round_are_told():
    """Of a Hugging Face dataset whose format is not torch."""
    rows = [{"input_ids": [4, 5, 6], "attention_mask": [1, 1, 1], "labels": n} for n in range(2)]
    with pytest.raises(DataError, match=r"'input_ids' is a list of 3 tensors.*with_format"):
        chosen(OfTransformers(), default_collate(rows))
    images = {"input_ids": X, "pixel_values": [X[0], X[1]]}  # of different sizes
    assert list(chosen(OfTransformers(), images).inputs) == ["input_ids", "pixel_values"]
    assert chosen(Image(), {"image": [X[0], X[1]], "label": Y}).labels == "label"


def test_what_was_said_is_not_asked_of_the_model():
    batch = {"image": X, "tabular": T, "digit": Y, "weight": Y, "label": Y}
    assert chosen(Both(), batch, inputs={"image": "image"}).inputs == {"image": "image"}
    found = chosen(Both(), batch, labels="digit", mask="weight")
    assert list(found.inputs) == ["image", "tabular"]
    assert (found.labels, found.left_out) == ("digit", ())


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
class TestBothStages:
    SAMPLES = tuple(
        {"image": x, "tabular": x.flip(0), "label": y, "idx": n, "text": f"sample {n}"}
        for n, (x, y) in enumerate(toys.labelled(12))
    )

    def live(self, batch):
        rows = len(batch["image"])
        return Both()(batch["image"], batch["tabular"]), torch.ones(rows, dtype=torch.int64)

    @pytest.mark.parametrize("key", ["index", "content", "field:idx"])
    def test_a_student_may_take_other_names(self, cache, tmp_path, key, caplog):
        """What is fingerprinted is the teacher's, whichever part of it a student takes."""
        caplog.set_level("INFO")
        loader = toys.loader(self.SAMPLES)
        made = toys.dump(cache, {"train": loader, "test": loader}, Both(), key=key)
        manifest = made["train"].manifest
        assert manifest.fingerprint["paths"] == ["image", "tabular"]
        assert "the teacher is given image, tabular of a batch" in caplog.text
        joined = kdcache.CachedDataset(loader.dataset, cache)
        toys.assert_joined_equals_live(toys.joined_loader(joined), self.live)
        run = kdcache.train_student(
            Image(),
            small.Data(loader, test=loader),
            cache,
            losses={"kd_loss": 0.5, "student_loss": 0.5},
            output=tmp_path / "run",
            progress=False,
            trainer={"max_epochs": 1, "accelerator": "cpu"},
        )
        assert run.metrics["test_accuracy"] >= 0
        text = "the student is given image of a batch; its forward does not take tabular, idx, text"
        assert caplog.text.count(text) == 1
        wrong = [dict(one) for one in self.SAMPLES]
        wrong[5]["tabular"] = wrong[5]["tabular"] + 1  # which this student does not even take
        changed = kdcache.CachedDataset(toys.Samples(wrong), cache)
        with pytest.raises(kdcache.errors.KdcacheError, match="sample 5"):
            changed.__getitems__([5])

    def test_is_what_a_mapping_says(self, tmp_path):
        said = {"inputs": {"image": "image", "tabular": "tabular"}, "labels": "label"}
        loader = toys.loader(self.SAMPLES)
        one = toys.dump(tmp_path / "a", loader, Both())["train"]
        other = toys.dump(tmp_path / "b", loader, Both(), batch=said)["train"]
        assert one.manifest.identity == other.manifest.identity
        assert one.manifest.fingerprint == other.manifest.fingerprint

    def test_a_complete_cache_is_reused_without_its_teacher(self, cache):
        """Whose signature nobody can ask then: what was written down is taken."""
        loader = toys.loader(self.SAMPLES)
        toys.dump(cache, loader, Both())
        toys.dump(cache, loader, lambda: pytest.fail("the teacher was made"))
        fewer = [{k: v for k, v in one.items() if k != "tabular"} for one in self.SAMPLES]
        with pytest.raises(kdcache.errors.MismatchError, match="batch"):
            toys.dump(cache, toys.loader(fewer), lambda: pytest.fail("the teacher was made"))

    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_no_model_travels_to_a_worker(self, cache, start):
        loader = toys.loader(self.SAMPLES, num_workers=1, multiprocessing_context=start)
        toys.dump(cache, loader, Both())
        mapping = BatchMapping().bound(Both())
        joined = kdcache.CachedDataset(loader.dataset, cache, batch=mapping)
        assert len(pickle.dumps(joined.mapping)) < 2_000
        toys.assert_joined_equals_live(joined.loader_like(loader), self.live)

    def test_a_loop_of_ones_own(self, cache):
        loader = toys.loader(self.SAMPLES)
        toys.dump(cache, loader, Both())
        joined = kdcache.CachedDataset(loader.dataset, cache).loader_like(loader)
        window = list(joined)
        counts = kdcache.step_counts(window)
        assert (counts.positions, counts.labelled) == (12, 12)
        for batch, _ in window:
            output = kdcache.forward(Image(), BatchMapping(), batch)
            assert output.labels.tolist() == batch["label"].tolist()
        module = kdcache.StudentModule(Image())
        small.trainer().fit(module, module.windowed(joined))
        assert list(module.mapping.inputs) == ["image"]


class TestDecoderInputs:
    """``shifted:<path>``: of labels, by the model's own function."""

    class Decoder(nn.Module):
        def forward(self, x, decoder_input_ids=None, labels=None):
            return nn.functional.one_hot(decoder_input_ids, 9).float()

        def prepare_decoder_input_ids_from_labels(self, labels):
            return torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1].clamp(min=0)], dim=1)

    LABELS = torch.tensor([[3, 4, -100], [5, 6, 7]])

    def test_are_made_of_labels(self):
        batch = {"x": torch.ones(2, 3), "labels": self.LABELS}
        output = kdcache.forward(self.Decoder(), BatchMapping(), batch)
        assert output.mapping.inputs == {"x": "x", "decoder_input_ids": "shifted:labels"}
        assert output.mapping.mask == "labelled"
        assert output.logits.argmax(-1).tolist() == [0, 3, 0, 5, 6]
        assert output.labels.tolist() == [3, 4, 5, 6, 7]
        said = BatchMapping(inputs=output.mapping.inputs, labels="labels", mask="labelled")
        assert kdcache.forward(self.Decoder(), said, batch).logits.equal(output.logits)
        assert said.resolve(batch).input_paths() == ("x", "labels")

    def test_with_an_ignore_index(self):
        padded = self.LABELS.clamp(min=0).to(torch.uint8)
        batch = {"x": torch.ones(2, 3), "labels": padded}
        output = kdcache.forward(self.Decoder(), BatchMapping(ignore_index=0), batch)
        assert output.logits.argmax(-1).tolist() == [0, 3, 0, 5, 6]

    @pytest.mark.parametrize(
        "batch",
        [
            {"x": X, "labels": Y},  # a class a sample: what a classifier with a decoder is given
            {"x": X, "labels": X},
            {"x": X, "labels": LABELS, "decoder_input_ids": LABELS.clamp(min=0)},
            {"x": X},
        ],
        ids=["classes", "no numbers", "there are some", "no labels"],
    )
    def test_are_not_made(self, batch):
        found = chosen(self.Decoder(), batch)
        assert found.inputs.get("decoder_input_ids") in (None, "decoder_input_ids")
        assert "labels" not in found.inputs

    def test_with_causal_are_refused(self):
        batch = {"x": torch.ones(2, 3), "labels": self.LABELS}
        with pytest.raises(UsageError, match="made of the labels by such a move already"):
            chosen(self.Decoder(), batch, causal=True)

    def test_of_a_model_without_the_function_are_refused(self):
        mapping = BatchMapping(inputs={"image": "image", "decoder_input_ids": "shifted:labels"})
        with pytest.raises(UsageError, match="no prepare_decoder_input_ids_from_labels"):
            kdcache.forward(Image(), mapping, {"image": X, "labels": self.LABELS})

    def test_a_mapping_survives_a_copy_of_its_model(self):
        module = kdcache.StudentModule(self.Decoder())
        batch = {"x": torch.ones(2, 3), "labels": self.LABELS}
        module.mapping = module.mapping.resolve(batch)
        copied = copy.deepcopy(module)
        assert kdcache.forward(copied.student, copied.mapping, batch).num_rows == 5
