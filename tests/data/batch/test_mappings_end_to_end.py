"""Every structure of batches and of model outputs, from dump to join: targets are the live ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from kdcache import BatchMapping, CachedDataset
from kdcache.data.batch.selection import CallableMapping, Selected
from kdcache.errors import AlignmentError, DataError, UsageError
from tests.data import toys

N = 10
XS = toys.vectors(N)


class Pair(NamedTuple):
    image: Tensor
    label: int


class Batch(dict):
    """A subclass of dict, as many libraries have."""


def batch_of(samples):
    return Batch(default_collate([dict(sample) for sample in samples]))


class Named(nn.Module):
    """Takes its inputs by name."""

    def __init__(self, name):
        super().__init__()
        self.inner, self.name = toys.make_teacher(), name

    def forward(self, **inputs):
        return {"logits": self.inner(inputs[self.name])}


class Sum(nn.Module):
    """model(*batch) of two inputs."""

    def __init__(self):
        super().__init__()
        self.inner = toys.make_teacher()

    def forward(self, a, b):
        return self.inner(a + b), "hidden states"


class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = toys.make_teacher()

    def forward(self, x):
        return SimpleNamespace(logits=self.inner(x), loss=None)


def second(batch):
    return Selected(args=(batch[1],))


# name -> samples, teacher, batch mapping, collate function, inputs of the linear teacher
CASES = {
    "(x, y)": ([(x, 1) for x in XS], None, None, None, lambda b: b[0]),
    "(x,)": ([(x,) for x in XS], None, None, None, lambda b: b[0]),
    "x": (list(XS), None, None, None, lambda b: b),
    "arrays": ([(x.numpy(), 1) for x in XS], None, None, None, lambda b: b[0]),
    "named tuple": ([Pair(x, 1) for x in XS], None, None, None, lambda b: b.image),
    "named tuple by name": (
        [Pair(x, 1) for x in XS],
        None,
        {"inputs": ["image"], "labels": "label"},
        None,
        lambda b: b.image,
    ),
    "Hugging Face names": (
        [{"pixel_values": x, "labels": 1} for x in XS],
        Named("pixel_values"),
        None,
        None,
        lambda b: b["pixel_values"],
    ),
    "subclass of dict": (
        [{"image": x, "digit": 1} for x in XS],
        Named("x"),
        {"inputs": {"x": "image"}, "labels": "digit"},
        batch_of,
        lambda b: b["image"],
    ),
    "nested": (
        [({"views": [x, -x]}, {"digit": 1}) for x in XS],
        None,
        {"inputs": ["0.views.1"], "labels": "1.digit"},
        None,
        lambda b: b[0]["views"][1],
    ),
    "all": ([(x, x * 2) for x in XS], Sum(), {"inputs": "all"}, None, lambda b: b[0] + b[1]),
    "function": ([(1, x) for x in XS], None, CallableMapping(second), None, lambda b: b[1]),
    "object with logits": ([(x, 1) for x in XS], Attribute(), None, None, lambda b: b[0]),
}


@pytest.mark.parametrize("name", CASES)
def test_joined_targets_are_the_live_ones(name, cache):
    samples, teacher, batch, collate, inputs = CASES[name]
    source = toys.loader(samples, collate_fn=collate)
    toys.dump(cache, source, teacher, batch=batch)
    joined = CachedDataset(source.dataset, cache, batch=batch, collate_fn=collate)
    order = torch.Generator().manual_seed(1)
    shuffled = DataLoader(
        joined, batch_size=3, shuffle=True, generator=order, collate_fn=joined.collate_fn
    )
    made = toys.assert_joined_equals_live(
        shuffled,
        lambda b: (toys.make_teacher()(inputs(b)), torch.ones(len(inputs(b)), dtype=torch.int64)),
    )
    kind = type((collate or default_collate)(samples[:2]))
    assert all(type(b) is kind for b in made)


def test_the_students_mapping_may_be_another(cache):
    """The teacher sees the large view, the student the small one: each by its own mapping."""
    samples = [{"large": x, "small": x[:2], "label": 1} for x in XS]
    spec = {
        "teacher": {"inputs": ["large"], "labels": "label"},
        "student": {"inputs": ["small"], "labels": "label"},
    }
    toys.dump(cache, samples, batch=spec)
    joined = CachedDataset(toys.Samples(samples), cache, batch=spec)
    assert joined.mapping == BatchMapping(inputs=("small",), labels="label")
    assert joined.source.paths == ("large",)
    toys.assert_joined_equals_live(
        toys.joined_loader(joined),
        lambda b: (toys.make_teacher()(b["large"]), torch.ones(len(b["large"]))),
    )


class Segmenter(nn.Module):
    """(B, C, H, W)."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, toys.NUM_CLASSES, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def test_segmentation_has_its_classes_on_axis_1(cache):
    images = torch.randn(6, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    teacher = Segmenter()
    labels = teacher(images).argmax(dim=1)
    labels[:, 0, 0] = -100
    samples = list(zip(images, labels, strict=True))
    batch = {"inputs": [0], "labels": 1, "class_dim": 1}
    view = toys.dump(cache, samples, teacher, batch=batch)["train"]
    assert view.manifest.num_classes == toys.NUM_CLASSES
    sums = view.commits[0].statistics
    assert (sums["positions"], sums["labelled"], sums["correct"]) == (6 * 20, 6 * 19, 6 * 19)

    joined = CachedDataset(toys.Samples(samples), cache, batch=batch)

    def live(b):
        logits = teacher(b[0]).permute(0, 2, 3, 1).reshape(-1, toys.NUM_CLASSES)
        return logits, torch.full((len(b[0]),), 20)

    toys.assert_joined_equals_live(toys.joined_loader(joined, shuffle=True), live)


class TestPositionsPerSample:
    """Token-level logits (B, L, C): what counts is each sample's own valid positions, in order."""

    def live(self, batch):
        mask = batch["attention_mask"].bool()
        logits = toys.TokenTeacher()(batch["input_ids"], batch["attention_mask"]).logits
        return logits[mask], mask.sum(dim=1)

    @pytest.mark.parametrize("collate", [toys.pad_right, toys.pad_left], ids=["right", "left"])
    @pytest.mark.parametrize("dump_size", [1, 4, 11])
    def test_targets_are_the_masked_logits(self, cache, collate, dump_size):
        source = toys.loader(toys.Tokens(), dump_size, collate_fn=collate)
        view = toys.dump(cache, source, toys.TokenTeacher())["train"]
        assert sum(c.statistics["positions"] for c in view.commits) == sum(toys.Tokens.LENGTHS)
        joined = CachedDataset(toys.Tokens(), cache, collate_fn=collate)
        for size in (1, 3, 11):
            toys.assert_joined_equals_live(
                toys.joined_loader(joined, size, shuffle=True), self.live
            )

    def test_padding_side_does_not_matter_to_the_cache(self, tmp_path):
        """Targets are flat: what was dumped padded right serves a student padded left."""
        source = toys.loader(toys.Tokens(), collate_fn=toys.pad_right)
        toys.dump(tmp_path / "c", source, toys.TokenTeacher())
        joined = CachedDataset(toys.Tokens(), tmp_path / "c", collate_fn=toys.pad_left)
        toys.assert_joined_equals_live(toys.joined_loader(joined), self.live)

    def test_a_student_with_other_positions_is_refused(self, cache):
        source = toys.loader(toys.Tokens(), collate_fn=toys.pad_right)
        toys.dump(cache, source, toys.TokenTeacher())

        def cut(samples):
            batch = toys.pad_right(samples)
            batch["attention_mask"][0, 0] = 0
            return batch

        joined = CachedDataset(
            toys.Tokens(),
            cache,
            batch={"inputs": {"input_ids": "input_ids"}, "mask": "attention_mask"},
            collate_fn=cut,
        )
        with pytest.raises(AlignmentError, match=r"mask of sample 4 counts 2 .*teacher had 3"):
            joined.collate_fn(joined.__getitems__([4, 1]))

    def test_a_mask_of_another_shape_than_the_positions(self, cache):
        samples = [(x, torch.ones(3)) for x in XS]
        with pytest.raises(DataError, match=r"mask has shape \(4, 3\).*positions \(4,\)"):
            toys.dump(cache, samples, batch={"inputs": [0], "mask": 1})
        assert not cache.exists()

    def test_an_attention_mask_over_tokens_does_not_mask_one_answer_a_sample(self, cache):
        class Classifier(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = toys.TokenTeacher()

            def forward(self, input_ids, attention_mask):
                return self.inner(input_ids, attention_mask).logits.mean(dim=1)

        samples = [
            {"input_ids": torch.arange(4) + n, "attention_mask": torch.ones(4)} for n in range(9)
        ]
        view = toys.dump(cache, samples, Classifier())["train"]
        assert "mask=None" in view.manifest.identity["batch"]
        joined = CachedDataset(toys.Samples(samples), cache)
        batch = joined.collate_fn(joined.__getitems__([0, 5]))
        assert batch.targets.num_positions.tolist() == [1, 1]


@pytest.mark.parametrize("class_dim", [-2, 0, 2, -3])
def test_the_batch_axis_is_no_class_axis(cache, class_dim):
    with pytest.raises((DataError, UsageError), match="class axis"):
        toys.dump(cache, list(XS), batch={"inputs": "all", "class_dim": class_dim})
