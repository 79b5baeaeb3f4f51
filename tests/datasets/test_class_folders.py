"""Class folders: which files, classes and splits are found, and what is refused."""

from __future__ import annotations

import pytest

from kdcache.datasets.class_folders import find_images, image_sizes
from kdcache.errors import DataError, UsageError
from tests.datasets.images import CLASSES, write_classes


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_class_folders_are_split_by_their_paths_alone(tmp_path):
    root = tmp_path / "a"
    touch(root, *(f"{name}/{n:03d}.png" for name in "cbd" for n in range(60)))
    before = find_images(root, held_out=0.25)
    assert before.class_names == ("b", "c", "d")
    assert list(before.splits) == ["train", "val"]
    assert all(before.class_names[n] == path[0] for path, n in before.splits["train"])
    assert list(before.splits["train"]) == sorted(before.splits["train"])
    assert 20 <= len(before.splits["val"]) <= 70  # a quarter of 180, drawn
    assert len(before.splits["val"]) + len(before.splits["train"]) == 180

    (root / "c" / "007.png").unlink()
    touch(root, "d/060.png")
    after = find_images(root, held_out=0.25)
    changed = {path for split in before.splits for path, _ in before.splits[split]} ^ {
        path for split in after.splits for path, _ in after.splits[split]
    }
    assert changed == {"c/007.png", "d/060.png"}
    for split in before.splits:
        one, other = ({path for path, _ in found.splits[split]} for found in (before, after))
        assert one ^ other <= changed


def test_the_drawn_split_is_the_same_on_every_machine(tmp_path):
    touch(tmp_path, *(f"{name}/{n}.png" for name in "ab" for n in range(12)))
    held = [path for path, _ in find_images(tmp_path, held_out=0.3).splits["val"]]
    assert held == ["a/10.png", "a/4.png", "a/5.png", "b/10.png", "b/7.png", "b/8.png"]


def test_named_splits_are_taken_as_they_are(tmp_path):
    touch(
        tmp_path, "train/a/1.jpg", "train/b/deep/er/2.JPEG", "train/a/.hidden", "train/b/Thumbs.db"
    )
    touch(tmp_path, "val/a/3.png", "test/b/4.webp", "notes.txt")
    found = find_images(tmp_path)
    assert found.splits == {
        "train": (("train/a/1.jpg", 0), ("train/b/deep/er/2.JPEG", 1)),
        "val": (("val/a/3.png", 0),),
        "test": (("test/b/4.webp", 1),),
    }


def test_a_share_of_train_is_held_out_where_nothing_else_is(tmp_path):
    touch(tmp_path, *(f"train/{name}/{n}.png" for name in "ab" for n in range(40)))
    found = find_images(tmp_path)
    assert list(found.splits) == ["train", "val"]
    assert all(path.startswith("train/") for path, _ in found.splits["val"])


def test_train_may_be_the_name_of_a_class(tmp_path):
    touch(tmp_path, *(f"{name}/{n}.png" for name in ("train", "bus") for n in range(40)))
    assert find_images(tmp_path).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ((), UsageError, "does not exist. Expected a folder for each class:\n  photos/"),
        (("1.png",), UsageError, "has no folder in it"),
        (("a/1.png",), DataError, "one class only, 'a'"),
        (("a/1.png", "b/.keep"), DataError, "class folders without an image: 'b'"),
        (("a/1.png", "b/1.png", "b/notes.txt"), DataError, "b/notes.txt is no image by its name"),
        (
            ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"),
            DataError,
            "has not: 'c'",
        ),
        (("train/a/1.png", "train/b/1.png", "test/a/.keep"), DataError, "has no image in its"),
        (("a/1.png", "b/1.png"), DataError, "gives none to validate on"),
    ],
)
def test_refused(tmp_path, files, error, says):
    root = tmp_path / "photos"
    touch(root, *files)
    with pytest.raises(error) as raised:
        find_images(root)
    assert says in str(raised.value)


@pytest.mark.parametrize("share", [0, 1, -0.1, 10])
def test_a_share_is_between_0_and_1(tmp_path, share):
    with pytest.raises(UsageError, match="a share between 0 and 1"):
        find_images(tmp_path, held_out=share)


def test_a_file_is_no_folder(tmp_path):
    touch(tmp_path, "photos.zip")
    with pytest.raises(UsageError, match=r"photos.zip is a file, not a folder"):
        find_images(tmp_path / "photos.zip")


def test_too_large_a_share_leaves_a_class_without_training(tmp_path):
    touch(tmp_path, *(f"{name}/{n}.png" for name in "ab" for n in range(3)))
    with pytest.raises(DataError, match="leaves no training image"):
        find_images(tmp_path, held_out=0.99)


def test_sizes_are_read_from_headers(tmp_path):
    found = find_images(write_classes(tmp_path / "photos", 30))
    assert set(image_sizes(found, at_most=8)) == {(20, 16)}
    (found.root / "cat" / "000.png").write_bytes(b"not a picture")
    (found.root / "cat" / "001.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cat/00\d.png cannot be read as an image"):
        image_sizes(found)
    assert found.class_names == CLASSES
