"""``kdcache init``: what is written, what is refused, and that each project runs as it is."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from kdcache.cli import main
from kdcache.config import parse, read_file
from kdcache.experiment import DumpExperiment, StudentExperiment
from kdcache.project.files import yaml_text
from tests.datasets.images import write_classes

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--trainer.accelerator", "cpu", "--progress", "false"]
DUMP = ["dump-teacher", "-c", "experiment.yaml", "--dump.accelerator", "cpu", *SHORT[2:]]
TRAIN = ["train-student", "-c", "experiment.yaml", *SHORT]
TEXT = "".join(f"{n % 7} and {n % 5} make {n % 7 + n % 5}.\n" for n in range(1500))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """An empty current folder, with nothing of another project's imported."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    enter(monkeypatch, tmp_path)


def enter(monkeypatch, folder):
    monkeypatch.chdir(folder)
    for name in ("models", "data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    sys.path[:] = [path for path in sys.path if not Path(path).name.startswith("project")]


def train_teacher(monkeypatch, epochs):
    """``python train_teacher.py --epochs N`` in this folder."""
    monkeypatch.setattr(sys, "argv", ["train_teacher.py", "--epochs", str(epochs)])
    monkeypatch.syspath_prepend(str(Path.cwd()))
    runpy.run_path("train_teacher.py", run_name="__main__")


def metrics():
    (run,) = Path("runs/students").glob("run-*")
    return json.loads((run / "run.json").read_text())["metrics"]


def first_and_last(column):
    """A metric at the first and the last validation of the run."""
    (run,) = Path("runs/students").glob("run-*")
    names, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    values = [float(row[names.index(column)]) for row in rows if row[names.index(column)]]
    return values[0], values[-1]


def commands(text):
    """The commands that init printed."""
    return [
        line.strip()
        for line in text.split("Next, in this order:\n")[1].split("\n\n")[0].split("\n")
    ]


def both_stages_read(path):
    raw = read_file(Path(path))
    return parse(DumpExperiment, raw), parse(StudentExperiment, raw)


def test_image_folder_from_nothing(tmp_path, monkeypatch, capsys):
    write_classes(tmp_path / "photos", 40)
    assert main(["init", "image-folder", "project", "--data", "photos"]) == 0
    told = capsys.readouterr().out
    assert "3 classes, 1" in told
    assert "resized to 16 pixels" in told
    assert commands(told) == [
        "cd project",
        "python train_teacher.py",
        "kdcache dump-teacher -c experiment.yaml",
        "kdcache train-student -c experiment.yaml",
    ]
    assert {path.name for path in (tmp_path / "project").iterdir()} == {
        *("experiment.yaml", "models.py", "train_teacher.py")
    }
    enter(monkeypatch, tmp_path / "project")
    both_stages_read("experiment.yaml")
    train_teacher(monkeypatch, 6)
    assert main(DUMP) == 0
    assert main(["verify", "runs/teacher.zarr"]) == 0
    assert main([*TRAIN, "--trainer.max_epochs", "12"]) == 0
    assert metrics()["val_accuracy"] > 0.6  # a third is chance
    assert metrics()["val_teacher_accuracy"] > 0.6
    first, last = first_and_last("val_teacher_kl")
    assert last < first


def test_image_folder_with_hugging_face_models(tmp_path, monkeypatch, capsys):
    vit = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    torch.manual_seed(0)
    teacher = transformers.ViTForImageClassification(vit)
    teacher.classifier.weight.data *= 40  # a teacher with an opinion
    teacher.save_pretrained("vit")
    said = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    Path("vit/preprocessor_config.json").write_text(json.dumps(said))
    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=5
    )
    transformers.ResNetForImageClassification(resnet).save_pretrained("resnet")
    write_classes(tmp_path / "photos" / "train", 12)
    write_classes(tmp_path / "photos" / "test", 3, first=50)
    words = ["--data", str(tmp_path / "photos"), "--image-size", "16"]
    words += ["--teacher", "hf:vit", "--student", "hf:./resnet"]
    assert main(["init", "image-folder", "project", *words]) == 0
    assert "python train_teacher.py" not in capsys.readouterr().out
    enter(monkeypatch, tmp_path / "project")
    assert [path.name for path in Path().iterdir()] == ["experiment.yaml"]  # no Python at all
    dump, _ = both_stages_read("experiment.yaml")
    assert dump.data["init_args"]["normalize"] == "hf:../vit"
    assert main(DUMP) == 0
    assert main([*TRAIN, "--optimizer.lr", "0.03", "--distill.losses", "{kd_loss: 1}"]) == 0
    first, last = first_and_last("test_teacher_kl")
    assert last < first


def test_image_folder_with_timm(tmp_path, monkeypatch):
    made = []

    def create_model(model_name, pretrained=False, **kwargs):
        made.append((model_name, pretrained, kwargs))
        net = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3)
        )
        torch.nn.init.eye_(net[-1].weight)
        net[-1].weight.data *= 8.0 if model_name == "large" else 0.0  # a teacher with an opinion
        net.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return net

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    timm.__spec__ = types.SimpleNamespace(name="timm")
    monkeypatch.setitem(sys.modules, "timm", timm)
    write_classes(tmp_path / "photos", 12)
    words = ["--data", "photos", "--teacher", "timm:large", "--student", "timm:small"]
    assert main(["init", "image-folder", "project", *words, "--image-size", "16"]) == 0
    enter(monkeypatch, tmp_path / "project")
    assert [path.name for path in Path().iterdir()] == ["experiment.yaml"]
    assert main(DUMP) == 0
    assert main([*TRAIN, "--optimizer.lr", "0.1"]) == 0
    assert ("large", True, {}) in made
    assert ("small", True, {"num_classes": 3}) in made
    first, last = first_and_last("val_teacher_kl")
    assert last < first


def test_text_from_nothing(tmp_path, monkeypatch, capsys):
    Path("sums.txt").write_text(TEXT)
    assert main(["init", "text", "project", "--data", "sums.txt"]) == 0
    assert "python train_teacher.py" in commands(capsys.readouterr().out)
    enter(monkeypatch, tmp_path / "project")
    assert {path.name for path in Path().iterdir()} == {"experiment.yaml", "train_teacher.py"}
    shrunk = Path("experiment.yaml").read_text()
    shrunk = shrunk.replace("vocab_size: 2000", "vocab_size: 300")
    shrunk = shrunk.replace("sequence_length: 128", "sequence_length: 32")
    Path("experiment.yaml").write_text(shrunk)
    both_stages_read("experiment.yaml")
    train_teacher(monkeypatch, 1)
    assert main(DUMP) == 0
    assert main(["verify", "runs/teacher.zarr"]) == 0
    assert main([*TRAIN, "--trainer.max_epochs", "2"]) == 0
    first, last = first_and_last("val_teacher_kl")
    assert last < first
    assert metrics()["val_perplexity"] < 100  # of 300 tokens
    capsys.readouterr()

    # The same with names, as if they were those of a hub: no Python at all.
    enter(monkeypatch, tmp_path)
    Path("small").mkdir()
    student = next(Path("project/runs/students").glob("run-*")) / "pretrained"
    words = ["--teacher", "hf:project/teacher", "--student", f"hf:{student}"]
    assert main(["init", "text", "project2", "--data", "sums.txt", *words]) == 0
    enter(monkeypatch, tmp_path / "project2")
    assert [path.name for path in Path().iterdir()] == ["experiment.yaml"]
    shrunk = Path("experiment.yaml").read_text()
    Path("experiment.yaml").write_text(shrunk.replace("length: 128", "length: 32"))
    both_stages_read("experiment.yaml")
    assert main(DUMP) == 0
    assert main([*TRAIN, "--trainer.limit_train_batches", "5"]) == 0


def test_custom(tmp_path, monkeypatch, capsys):
    assert main(["init", "custom", "project"]) == 0
    enter(monkeypatch, tmp_path / "project")
    both_stages_read("experiment.yaml")
    train_teacher(monkeypatch, 2)
    assert main(DUMP) == 0
    assert main([*TRAIN, "--trainer.max_epochs", "3"]) == 0
    assert metrics()["val_accuracy"] > 0.5  # a fifth is chance
    first, last = first_and_last("val_teacher_kl")
    assert last < first

    enter(monkeypatch, tmp_path)
    capsys.readouterr()
    for command in ("dump-teacher", "train-student"):
        assert main([command, "-c", "project/experiment.yaml"]) == 2
        told = capsys.readouterr().err
        assert "data.py stands beside it" in told or "models.py stands beside it" in told
        assert f"cd {tmp_path}/project && kdcache {command} -c experiment.yaml" in told


def test_what_is_there_stays_unless_it_is_said(capsys):
    Path("models.py").write_text("mine")
    assert main(["init", "custom"]) == 2
    assert "has models.py already. Nothing was written." in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["models.py"]
    assert main(["init", "custom", "--force"]) == 0
    assert "class Teacher" in Path("models.py").read_text()
    assert commands(capsys.readouterr().out)[0] == "python train_teacher.py"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Say what your data are: kdcache init KIND FOLDER.\n  image-folder"),
        (["images"], "'images' is no kind of data. Did you mean 'image-folder'?"),
        (["image-folder"], "kdcache init image-folder FOLDER --data PATH"),
        (["text"], "kdcache init text FOLDER --data PATH"),
        (["image-folder", "--data", "nowhere"], "does not exist. Expected a folder for each class"),
        (["text", "--data", "nowhere"], "does not exist. Expected a text file"),
        (["image-folder", "--data", "one", "--teacher", "vit"], "--teacher is hf:NAME"),
        (["image-folder", "--data", "one", "--student", "hf:./no"], "there is no folder ./no"),
        (["image-folder", "--data", "one", "--image-size", "4"], "at least 8 pixels, not 4"),
        (["text", "--data", "x", "--teacher", "timm:vit"], "timm has image models only"),
        (["text", "--data", "x", "--student", "hf:gpt2"], "--student for text needs --teacher"),
        (["text", "--data", "x", "--image-size", "32"], "--image-size is for image-folder"),
        (["custom", "--data", "x"], "custom takes no --data"),
        (["custom", "--tacher", "x"], "unrecognized arguments: --tacher"),
    ],
)
def test_wrong_calls(capsys, words, says):
    assert main(["init", *words]) == 2
    assert says in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_wrong_data(tmp_path, capsys):
    write_classes(tmp_path / "photos", 20)
    (tmp_path / "photos" / "fox").mkdir()
    assert main(["init", "image-folder", "project", "--data", "photos"]) == 1
    assert "class folders without an image: 'fox'" in capsys.readouterr().err
    (tmp_path / "photos" / "fox").rmdir()
    for n in range(20):
        (tmp_path / "photos" / "cat" / f"{n:03d}.png").write_bytes(b"not a picture")
    assert main(["init", "image-folder", "project", "--data", "photos"]) == 1
    assert ".png cannot be read as an image" in capsys.readouterr().err
    Path("old.txt").write_bytes("façade".encode("latin1"))
    assert main(["init", "text", "project", "--data", "old.txt"]) == 1
    assert "old.txt is no text in UTF-8: byte 2 is 0xe7" in capsys.readouterr().err
    assert not Path("project").exists()


def test_a_corrupt_image_ends_the_dump_with_its_name(tmp_path, monkeypatch, capsys):
    write_classes(tmp_path / "photos", 20)
    assert main(["init", "image-folder", "project", "--data", "photos"]) == 0
    (tmp_path / "photos" / "dog" / "003.png").write_bytes(b"not a picture")
    enter(monkeypatch, tmp_path / "project")
    drop = ["--teacher", "{class_path: models.ConvNet, init_args: {num_classes: 3}}"]
    capsys.readouterr()
    assert main([*DUMP, *drop]) == 1
    assert "dog/003.png cannot be read as an image" in capsys.readouterr().err


def test_the_guide_shows_what_is_typed(tmp_path, capsys):
    """Each ``init`` of it works, and the lines below it are those that it prints itself."""
    write_classes(tmp_path / "photos", 20)
    Path("text.txt").write_text(TEXT)
    guide = (ROOT / "docs" / "start.md").read_text()
    shown = [
        block.splitlines() for block in re.findall(r"^```bash\n(.*?)^```$", guide, re.M | re.S)
    ]
    inits = [block for block in shown if block[0].startswith("kdcache init")]
    for first, *others in inits:
        assert main([*shlex.split(first)[1:], "--force"]) == 0
        printed = commands(capsys.readouterr().out)
        assert others in ([], [line for line in printed if not line.startswith("pip install")])
    assert len(inits) == 5


def test_the_project_is_quick_to_make():
    """No torch: it would take seconds."""
    code = "import sys; from kdcache import cli; cli.main(['init', 'custom'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "value",
    [
        "a/b.txt",
        "hf:../a",
        "x: y",
        "a:",
        "no",
        "12",
        "1e-3",
        "with space",
        "täglich",
        "# x",
        'say "x"',
        ".",
        7,
        5e-5,
        0.01,
    ],
)
def test_values_are_read_back_as_they_are(value):
    assert yaml.safe_load(f"x: {yaml_text(value)} # note")["x"] == value
