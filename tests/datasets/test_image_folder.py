"""Images as tensors: size, place, scale, sameness, and errors that name the file."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.datasets import ImageFolder
from kdcache.datasets.image_folder import decode
from kdcache.datasets.preprocessing import IMAGENET, mean_and_std
from kdcache.errors import DataError, UsageError
from tests.datasets.images import CLASSES, picture, write_classes


def test_batches(tmp_path):
    write_classes(tmp_path / "train", 5)
    write_classes(tmp_path / "val", 2, suffix=".jpg")
    data = ImageFolder(str(tmp_path), image_size=12, batch_size=4)
    assert data.class_names == CLASSES
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 12, 12)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert list(data.val_dataloader()) == ["val"]
    (val,) = data.val_dataloader().values()
    assert torch.cat([labels for _, labels in val]).tolist() == [0, 0, 1, 1, 2, 2]

    again = ImageFolder(str(tmp_path), image_size=12, batch_size=4)
    for one, other in zip(data.train_dataloader(), again.train_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_a_sample_is_the_same_the_second_time_when_it_is_not_decoded_again(tmp_path):
    data = ImageFolder(str(write_classes(tmp_path, 20)), image_size=12)
    train = data.splits["train"]
    first, _ = train[3]
    (data.found.root / train.images[3][0]).unlink()
    assert torch.equal(train[3][0], first)


def test_pixels_are_scaled_and_normalised(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", 4)[:, 0, 0].tolist() == [255, 0, 51]
    write_classes(tmp_path / "photos", 20, classes=("a", "b"))
    data = ImageFolder(str(tmp_path / "photos"), image_size=16)
    pixels = decode(data.found.root / data.found.splits["train"][0][0], 16)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in IMAGENET)
    torch.testing.assert_close(data.splits["train"][0][0], (pixels / 255 - mean) / std)


def test_the_middle_square_is_cut_out_of_the_resized_image(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # exactly the middle square
    Image.fromarray(wide).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", 10).unique().tolist() == [200]
    assert decode(tmp_path / "x.png", 5).shape == (3, 5, 5)


def test_a_camera_that_was_held_upright(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # the upper half as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is up becomes right
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    shown = decode(tmp_path / "x.png", 16)[0]
    assert shown[:, 8:].min() == 255
    assert shown[:, :8].max() == 0


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_every_kind_of_picture_has_three_channels(tmp_path, mode):
    suffix = ".tif" if mode == "CMYK" else ".png"
    picture(1, 0).convert(mode).save(tmp_path / f"x{suffix}")
    shown = decode(tmp_path / f"x{suffix}", 8)
    assert shown.shape == (3, 8, 8)
    assert shown.dtype == torch.uint8


def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same(tmp_path):
    smooth = picture(0, 0, (8, 8)).resize((800, 800), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "x.jpg", quality=95)
    smooth.save(tmp_path / "x.png")
    one, other = (decode(tmp_path / name, 24).float() for name in ("x.jpg", "x.png"))
    assert (one - other).abs().mean() < 3


def test_errors_name_the_file(tmp_path):
    picture(0, 0, (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.fromarray(np.full((9, 9), 60_000, np.uint16)).save(tmp_path / "deep.png")
    for name, says in (
        ("short.png", "cannot be read as an image"),
        ("text.jpg", "cannot be read as an image"),
        ("deep.png", "more than 8 bits"),
    ):
        with pytest.raises(DataError, match=says) as raised:
            decode(tmp_path / name, 8)
        assert name in str(raised.value)


@pytest.mark.parametrize("arguments", [{"image_size": 0}, {"image_size": 8, "batch_size": 0}])
def test_wrong_numbers(tmp_path, arguments):
    with pytest.raises(UsageError, match="is at least 1, not 0"):
        ImageFolder(str(tmp_path), **arguments)


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r'pip install "kdcache\[images\]"'):
        decode(tmp_path / "x.png", 8)


def test_normalisation_of_published_models(tmp_path, monkeypatch):
    said = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert mean_and_std(f"hf:{tmp_path}") == ((0.5,) * 3, (0.25,) * 3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert mean_and_std(f"hf:{tmp_path}") == ((0.0,) * 3, (1.0,) * 3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5]}))
    with pytest.raises(UsageError, match="names no mean"):
        mean_and_std(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match="has no preprocessor_config"):
        mean_and_std(f"hf:{tmp_path}")

    timm = types.ModuleType("timm")
    timm.create_model = lambda name, pretrained: types.SimpleNamespace(
        pretrained_cfg={"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert mean_and_std("timm:net") == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="needs timm"):
        mean_and_std("timm:net")
    with pytest.raises(UsageError, match="normalize is imagenet, hf:"):
        mean_and_std("cifar")
