"""The MNIST example on tiny synthetic IDX files: no real data, no network."""

import gzip
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

import kdcache
from examples.mnist import data as mnist
from examples.mnist import resnet, seeds
from kdcache.train.optimization.optimizers import OPTIMIZERS
from tests.examples.idx_files import idx_bytes, write_split
from tests.hang import HANG_S

EXAMPLE = Path(mnist.__file__).parent
NUM_TRAIN, NUM_TEST = 60, 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", NUM_TRAIN, packed=True)
    write_split(tmp_path, "t10k", NUM_TEST, packed=False)
    return tmp_path


# --- the reader


@pytest.mark.parametrize("packed", [False, True])
def test_reads_plain_and_gzipped_files(tmp_path, packed):
    write_split(tmp_path, "train", NUM_TRAIN, packed=packed)
    images, labels = mnist.read_split(tmp_path, "train")
    expected = np.random.default_rng(NUM_TRAIN).integers(0, 256, (NUM_TRAIN, 28, 28))
    np.testing.assert_array_equal(images, expected)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(NUM_TRAIN) % 10)
    assert labels.dtype == np.int64


GOOD = idx_bytes(np.zeros((3, 28, 28)))
DAMAGED = {
    "empty": (b"", "it begins with"),
    "magic of labels": (
        idx_bytes(np.zeros(3)),
        "begins with 00000801, not with the magic 00000803",
    ),
    "other type": (b"\0\0\x0d\x03" + GOOD[4:], "begins with 00000d03"),
    "header cut": (GOOD[:9], "ends inside its header, after 9 bytes"),
    "values cut": (GOOD[:-1], "2352 bytes of values; it has only 2351"),
    "values added": (GOOD + b"\0", "2352 bytes of values; it has more"),
    "absurd size": (b"\0\0\x08\x03" + b"\xff" * 12 + b"\0", "it has only 1"),
    "gzip cut": (gzip.compress(GOOD)[:-12], "ended before"),
    "gzip flipped": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "CRC check failed"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_file_is_named(root, kind):
    content, message = DAMAGED[kind]
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        mnist.read_split(root, "train")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("t10k-images-idx3-ubyte", np.zeros((NUM_TEST, 14, 14)), r"images of \(14, 14\)"),
        ("t10k-images-idx3-ubyte", np.zeros((7, 28, 28)), "has 7 images, but .* has 20 labels"),
        ("t10k-labels-idx1-ubyte", np.full(NUM_TEST, 10), "label 10 at index 0"),
    ],
)
def test_files_that_are_not_mnist_are_refused(root, name, values, message):
    (root / name).write_bytes(idx_bytes(values))
    with pytest.raises(ValueError, match=message):
        mnist.read_split(root, "t10k")


def test_missing_file_says_what_to_do_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist.urllib.request, "urlopen", lambda *_, **__: pytest.fail("network"))
    with pytest.raises(FileNotFoundError, match="download: true") as caught:
        mnist.MnistData(root=str(tmp_path)).train_dataloader()
    assert f"{tmp_path} has neither train-images-idx3-ubyte nor" in str(caught.value)


# --- the download, from folders that stand for mirrors

NAME = "t10k-labels-idx1-ubyte"


def make_mirror(folder: Path, content: bytes) -> str:
    folder.mkdir()
    (folder / f"{NAME}.gz").write_bytes(content)
    return folder.as_uri() + "/"


def test_download_takes_the_first_mirror_with_the_right_contents(tmp_path, monkeypatch):
    content = idx_bytes(np.arange(10))
    monkeypatch.setitem(mnist.SHA256, NAME, mnist.hashlib.sha256(content).hexdigest())
    mirrors = [
        (tmp_path / "absent").as_uri() + "/",
        make_mirror(tmp_path / "cut", gzip.compress(content)[:-10]),
        make_mirror(tmp_path / "other", gzip.compress(content + b"\0")),
        make_mirror(tmp_path / "good", gzip.compress(content, compresslevel=1)),
    ]
    target = tmp_path / "new" / "folder"
    with pytest.raises(OSError, match="could not download") as caught:
        mnist.download_idx(target, NAME, mirrors[:3])
    assert not target.exists()
    assert all(mirror in str(caught.value) for mirror in mirrors[:3])
    assert "sha256 of the contents is" in str(caught.value)

    mnist.download_idx(target, NAME, mirrors)
    assert [path.name for path in target.iterdir()] == [f"{NAME}.gz"]
    np.testing.assert_array_equal(mnist.read_idx(target / f"{NAME}.gz", num_dims=1), np.arange(10))


def test_download_fetches_only_what_is_missing(root, monkeypatch):
    fetched = []
    monkeypatch.setattr(mnist, "download_idx", lambda root, name: fetched.append(name))
    mnist.MnistData(root=str(root), download=True)
    assert fetched == []
    (root / NAME).unlink()
    mnist.MnistData(root=str(root), download=True)
    assert fetched == [NAME]


# --- samples, loaders, labelled subsets


def test_samples_are_normalised_and_the_same_alone_and_in_a_batch(root):
    dataset = mnist.MnistData(root=str(root)).train_set
    assert len(dataset) == NUM_TRAIN
    indices = [5, 0, 59, 5]
    for index, (image, label) in zip(indices, dataset.__getitems__(indices), strict=True):
        alone, alone_label = dataset[index]
        assert image.dtype == torch.float32
        assert image.shape == (1, 28, 28)
        assert torch.equal(image, alone)
        assert label == alone_label == index % 10
        assert type(label) is int
        pixels = dataset.images[index].double() / 255
        torch.testing.assert_close(image[0].double(), (pixels - 0.1307) / 0.3081)


def test_loaders(root):
    data = mnist.MnistData(root=str(root), batch_size=16, num_train=40)
    batches = list(data.train_dataloader())
    assert [len(labels) for _, labels in batches] == [16, 16, 8]
    assert batches[0][0].shape == (16, 1, 28, 28)
    assert batches[0][1].dtype == torch.int64
    again = list(mnist.MnistData(root=str(root), batch_size=16, num_train=40).train_dataloader())
    assert torch.equal(batches[0][0], again[0][0])
    other = mnist.MnistData(root=str(root), batch_size=16, num_train=40, seed=1)
    assert not torch.equal(batches[0][0], next(iter(other.train_dataloader()))[0])

    (name,) = data.val_dataloader()
    assert name == "test"
    labels = torch.cat([labels for _, labels in data.val_dataloader()["test"]])
    assert labels.tolist() == [index % 10 for index in range(NUM_TEST)]
    assert data.class_names == tuple("0123456789")


def test_fewer_images_keep_their_indices(root):
    whole = mnist.MnistData(root=str(root)).train_set
    part = mnist.MnistData(root=str(root), num_train=12).train_set
    assert len(part) == 12
    assert torch.equal(part[11][0], whole[11][0])


def test_few_labels_leave_the_images_alone(root):
    whole = mnist.MnistData(root=str(root)).train_set
    few = mnist.MnistData(root=str(root), num_labelled=20).train_set
    labelled = few.labels != mnist.IGNORE_INDEX
    assert torch.equal(few.images, whole.images)
    assert torch.equal(few.labels[labelled], whole.labels[labelled])
    assert torch.bincount(few.labels[labelled]).tolist() == [2] * 10
    loss = nn.functional.cross_entropy(torch.zeros(NUM_TRAIN, 10), few.labels)
    assert loss.item() == pytest.approx(np.log(10), rel=1e-6)


def test_stratified_subset_is_seeded_proportional_and_nested():
    labels = np.random.default_rng(7).choice(10, size=5000, p=np.arange(1, 11) / 55)
    shares = np.bincount(labels) / len(labels)
    kept = mnist.stratified_subset(labels, num_kept=333, seed=3)
    assert len(set(kept.tolist())) == 333
    np.testing.assert_array_less(np.abs(np.bincount(labels[kept]) - 333 * shares), 1.5)
    np.testing.assert_array_equal(kept, mnist.stratified_subset(labels, num_kept=333, seed=3))
    assert set(kept) < set(mnist.stratified_subset(labels, num_kept=400, seed=3))
    assert set(kept) != set(mnist.stratified_subset(labels, num_kept=333, seed=4))
    everything = mnist.stratified_subset(labels, num_kept=5000, seed=3)
    np.testing.assert_array_equal(np.sort(everything), np.arange(5000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train is 0"),
        ({"num_labelled": -1}, "num_labelled is -1"),
        ({"num_train": 61}, "num_train is 61, but there are only 60 images"),
        ({"num_train": 30, "num_labelled": 31}, "only 30 training images"),
    ],
)
def test_impossible_numbers_are_refused(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        mnist.MnistData(root=str(root), **arguments).train_dataloader()


# --- models


def norm_names(prefix: str) -> list[str]:
    fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{prefix}.{field}" for field in fields]


def torchvision_names(num_blocks: tuple[int, ...]) -> list[str]:
    """State dict of torchvision's basic-block ResNets, in order, by rule."""
    names = ["conv1.weight", *norm_names("bn1")]
    for stage, count in enumerate(num_blocks, start=1):
        for block in range(count):
            at = f"layer{stage}.{block}"
            for part in (1, 2):
                names += [f"{at}.conv{part}.weight", *norm_names(f"{at}.bn{part}")]
            if stage > 1 and block == 0:
                names += [f"{at}.downsample.0.weight", *norm_names(f"{at}.downsample.1")]
    return [*names, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("make", "num_blocks", "num_names", "num_grey", "num_torchvision"),
    [
        (resnet.resnet18, (2, 2, 2, 2), 122, 11_175_370, 11_689_512),
        (resnet.resnet34, (3, 4, 6, 3), 218, 21_283_530, 21_797_672),
    ],
)
def test_resnets_have_torchvisions_names_and_sizes(
    make, num_blocks, num_names, num_grey, num_torchvision
):
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        grey = make()
        colour = resnet.ResNet(num_blocks=num_blocks, num_classes=1000, in_channels=3)
    state = grey.state_dict()
    assert list(state) == torchvision_names(num_blocks)
    assert len(state) == num_names
    assert state["conv1.weight"].shape == (64, 1, 7, 7)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert state["fc.weight"].shape == (10, 512)
    assert count(grey) == num_grey
    # The published sizes of torchvision's models: 1000 classes, colour images.
    assert count(colour) == num_torchvision


@pytest.mark.parametrize(
    "make", [resnet.resnet18, resnet.resnet34, resnet.small_teacher, resnet.small_student]
)
def test_models_return_raw_logits(make):
    torch.manual_seed(0)
    model = make(num_classes=7).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 1, 28, 28))
    assert logits.shape == (2, 7)
    assert not torch.allclose(logits.logsumexp(-1), torch.zeros(2), atol=1e-3)
    assert not torch.allclose(logits.sum(-1), torch.ones(2), atol=1e-3)


def test_student_width_is_its_size():
    sizes = [
        sum(parameter.numel() for parameter in resnet.small_student(width=width).parameters())
        for width in (4, 8, 16)
    ]
    assert sizes == [2182, 7234, 25978]


# --- checkpoints


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "data parallel": lambda state: prefixed(state, "module."),
    "wrapped twice": lambda state: {"state_dict": prefixed(state, "model.module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "predecessor's run": lambda state: {
        "state_dict": prefixed(state, "teacher_model.")
        | prefixed(resnet.small_student(width=2).state_dict(), "student_model.")
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoint_forms(tmp_path, form):
    torch.manual_seed(1)
    source = resnet.small_student(width=3)
    torch.save(FORMS[form](source.state_dict()), tmp_path / "model.pt")
    loaded = resnet.small_student(width=3, checkpoint=str(tmp_path / "model.pt"))
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_safetensors_checkpoint_of_a_resnet(tmp_path):
    torch.manual_seed(1)
    state = resnet.resnet18().state_dict()
    safetensors.torch.save_file(prefixed(state, "module."), tmp_path / "r.safetensors")
    loaded = resnet.resnet18(checkpoint=str(tmp_path / "r.safetensors")).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_checkpoint_that_does_not_fit_lists_the_names(tmp_path):
    state = resnet.small_student(width=3).state_dict()
    del state["features.0.weight"]
    state["head.weight"] = torch.zeros(1)
    state["fc.bias"] = torch.zeros(11)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="3 names differ") as caught:
        resnet.small_student(width=3, checkpoint=str(tmp_path / "other.pt"))
    message = str(caught.value)
    assert "other.pt does not fit this model, SmallNet" in message
    assert "missing: features.0.weight" in message
    assert "unexpected: head.weight" in message
    assert "shape of fc.bias: (11,) in the file, (10,) here" in message


def test_long_lists_of_names_are_cut(tmp_path):
    torch.save(resnet.small_student().state_dict(), tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"and \d+ more\nNothing was loaded"):
        resnet.resnet18(checkpoint=str(tmp_path / "small.pt"))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": "b"}}])
def test_checkpoint_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        resnet.load_checkpoint(tmp_path / "other.pt")


def test_checkpoint_with_code_is_refused(tmp_path):
    torch.save(resnet.small_student(), tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match="does not load as weights only"):
        resnet.load_checkpoint(tmp_path / "pickled.pt")


# --- the script and the experiment files


def test_train_teacher_script(root):
    out = root / "runs" / "teacher.safetensors"
    command = [sys.executable, str(EXAMPLE / "train_teacher.py"), "--data", str(root)]
    command += ["--out", str(out), "--epochs", "2", "--batch-size", "30", "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert result.returncode == 0, result.stderr
    accuracies = re.findall(r"^epoch (\d)/2: loss .* test accuracy (\S+),", result.stdout, re.M)
    assert [epoch for epoch, _ in accuracies] == ["1", "2"]

    teacher = resnet.small_teacher(checkpoint=str(out)).eval()
    dataset = mnist.MnistData(root=str(root)).test_set
    images, labels = zip(*dataset.__getitems__(range(NUM_TEST)), strict=True)
    with torch.inference_mode():
        predicted = teacher(torch.stack(images)).argmax(dim=-1)
    accuracy = (predicted == torch.tensor(labels)).double().mean().item()
    assert accuracy == pytest.approx(float(accuracies[-1][1]), abs=1e-4)


@pytest.mark.parametrize("name", ["experiment.yaml", "resnet.yaml"])
def test_experiment_files_name_what_exists(name):
    config = yaml.safe_load((EXAMPLE / name).read_text())
    assert set(config["distill"]["losses"]) <= {"kd_loss", "student_loss"}
    for section in ("data", "teacher", "student", "optimizer"):
        path = config[section]["class_path"]
        module, _, attribute = path.rpartition(".")
        target = OPTIMIZERS.get(path) or getattr(import_module(module), attribute)
        arguments = config[section].get("init_args", {})
        if section == "optimizer":
            arguments = {"params": [], **arguments}
        inspect.signature(target).bind(**arguments)
        assert arguments.get("lr", 1.0) <= 1.0  # YAML 1.1 reads 1e-3 as a string: write 1.0e-3


# --- students over seeds


def test_students_over_seeds(root, tmp_path, monkeypatch, capsys):
    """Every way takes about as many steps, from the same cache."""
    cache = tmp_path / "teacher.zarr"
    data = mnist.MnistData(root=root, batch_size=16)
    loaders = {"train": data.train_dataloader(), **data.val_dataloader()}
    kdcache.dump_teacher(
        resnet.small_teacher(), loaders, cache, accelerator="cpu", progress=False, pilot=False
    )
    words = ["--data", str(root), "--cache", str(cache), "--seeds", "2", "--num-labelled", "20"]
    monkeypatch.setattr("sys.argv", ["seeds", *words])
    seeds.main()
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("seed ")]) == 2 * len(seeds.WAYS)
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 1 + 1 + len(seeds.WAYS) + 1
    assert all(len(re.findall(r"-?\d+\.\d+ ± \d+\.\d+", row)) == 3 for row in rows[2:])


def test_only_labelled_images_are_drawn(root):
    data = mnist.MnistData(root=root, batch_size=16, num_labelled=20, only_labelled=True)
    loader = data.train_dataloader()
    labels = torch.cat([labels for _, labels in loader])
    assert len(labels) == 20
    assert (labels != mnist.IGNORE_INDEX).all()
    assert len(loader.dataset) == NUM_TRAIN


def test_images_can_stay_in_their_order(root):
    data = mnist.MnistData(root=root, batch_size=NUM_TRAIN, shuffle=False)
    _, labels = next(iter(data.train_dataloader()))
    assert torch.equal(labels, data.train_set.labels)
