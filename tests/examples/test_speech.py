"""The speech example's models, and its demo on a tiny setting: what it trains, prints, writes."""

import contextlib
import io
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Wav2Vec2ForCTC

import kdcache
from examples.speech import demo, drift, models, train_teacher
from examples.speech.alphabet import DIGITS
from examples.speech.data import SpokenNumbers, collate
from examples.speech.sizes import SIZES
from kdcache import cli
from tests.examples.small_speech import write_archive

EXAMPLE = Path(demo.__file__).parent
SEEDS = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run in, with recordings where the documents say they are."""
    write_archive(tmp_path_factory.getbasetemp() / "speech" / "shared" / "data")
    folder = tmp_path_factory.getbasetemp() / "speech" / "checkout"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def first_run(place):
    """A run from nothing: its folder, its words, and what every student began with."""
    out = place / "runs" / "speech" / "tiny"
    began, printed, train_student = [], io.StringIO(), kdcache.train_student

    def spy(student, data, cache, **options):
        weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        order = [batch["text"] for batch in data.train_dataloader()]
        began.append((options["losses"], options["seed"], weights, order))
        return train_student(student, data, cache, **options)

    words = ["--data", "../shared/data", "--out", str(out), "--size", "tiny"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(place)
        patch.setattr(kdcache, "train_student", spy)
        demo.main([*words, "--seeds", str(SEEDS)])
    return out, printed.getvalue(), began


def test_a_run_from_nothing(first_run):
    out, printed, _ = first_run
    assert "48 utterances to train on, 24 of them with a transcript" in printed
    nats = [float(found) for found in re.findall(r"CTC (\S+) nats", printed)]
    assert len(nats) == SIZES["tiny"].teaching.epochs
    assert nats[-1] < nats[0] / 4
    results = json.loads((out / "results.json").read_text())
    assert 0 < results["teacher_word_error_rate"] < 0.9  # it says nothing before it has learned
    assert results["student_parameters"] < results["teacher_parameters"]
    assert (results["num_labelled"], results["num_train"]) == (24, 48)
    assert [row["name"] for row in results["rows"]] == ["transcripts", "teacher", "both"]
    for row in results["rows"]:
        assert [score["seed"] for score in row["scores"]] == list(range(SEEDS))
        for score in row["scores"]:
            assert score["steps"] == 12  # the same, however many utterances an epoch has
            assert score["teacher_kl"] > 0
            assert 0 < score["teacher_agreement"] < 1
            assert Path(score["weights"]).is_file()
        means = [score["word_error_rate"] for score in row["scores"]]
        assert row["word_error_rate_mean"] == pytest.approx(sum(means) / SEEDS)
    far, near, _ = (row["teacher_kl_mean"] for row in results["rows"])
    assert near < far
    assert all(split["pilot"]["drift_mean_kl"] < 1e-6 for split in results["cache"].values())


def test_students_of_a_seed_differ_in_what_they_learn_from_alone(first_run):
    _, _, began = first_run
    assert len(began) == len(demo.WAYS) * SEEDS
    first = began[0][2]
    for _, _, weights, _ in began:  # of the teacher's own layers, whatever the seed
        assert all(torch.equal(weights[name], first[name]) for name in first)
    for seed in range(SEEDS):
        few, *others = [order for _, of, _, order in began if of == seed]
        assert sum(map(len, few)) == 24
        assert others[0] == others[1]
    assert began[2][3] != began[3][3]
    assert [list(losses) for losses, *_ in began[::SEEDS]] == [
        ["student_loss"],
        ["kd_loss"],
        ["kd_loss", "student_loss"],
    ]


def test_a_second_run_reuses_teacher_and_cache(first_run, place, capsys, monkeypatch):
    out, _, _ = first_run
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.zarr/**/*") if path.is_file()}
    monkeypatch.chdir(place)
    monkeypatch.setattr(demo, "train_teacher", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(demo, "WAYS", demo.WAYS[:1])
    demo.main(["--data", "../shared/data", "--out", str(out), "--size", "tiny", "--seeds", "1"])
    assert "teacher   reused" in capsys.readouterr().out
    assert len(files) > 10
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (out / "students" / "run-002" / "transcripts-0" / "student.safetensors").is_file()


def test_the_command_line_does_the_same(first_run, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    tiny = str(EXAMPLE / "tiny.yaml")
    assert cli.main(["dump-teacher", "-c", tiny]) == 0
    assert cli.main(["train-student", "-c", tiny, "--output", "runs/student"]) == 0
    assert "its teacher" in capsys.readouterr().out
    record = json.loads(Path("runs/student/run.json").read_text())
    assert record["steps"] == 12
    metrics = record["metrics"]
    assert metrics["test_inference_result"] == metrics["test_word_error_rate"]
    taught = json.loads((first_run[0] / "results.json").read_text())["teacher_word_error_rate"]
    assert metrics["test_teacher_word_error_rate"] == pytest.approx(taught)
    assert {"train_features_pen", "train_student_loss", "train_kd_loss"} <= metrics.keys()


def test_a_batch_at_another_speed(batch):
    torch.manual_seed(0)
    sizes = set()
    for _ in range(5):
        sound, mask = train_teacher.at_another_speed(*sound_of(batch), 0.2)
        factor = sound.shape[1] / batch["input_values"].shape[1]
        sizes.add(sound.shape[1])
        assert 0.8 < factor < 1.2
        before = batch["attention_mask"].sum(dim=1)
        torch.testing.assert_close(
            mask.sum(dim=1), factor * before, atol=2, rtol=0, check_dtype=False
        )
        assert mask.sum(dim=1).max() <= sound.shape[1]
    assert len(sizes) == 5
    same, mask = train_teacher.at_another_speed(*sound_of(batch), 0.0)
    torch.testing.assert_close(same, batch["input_values"])
    assert torch.equal(mask, batch["attention_mask"])


@pytest.mark.parametrize(("name", "file"), [("small", "experiment.yaml"), ("tiny", "tiny.yaml")])
def test_experiment_files_say_what_the_demo_does(name, file):
    size, config = SIZES[name], yaml.safe_load((EXAMPLE / file).read_text())
    given = config["data"]["init_args"]
    for key in ("num_train", "num_test", "most", "labelled", "batch_size"):
        assert given[key] == getattr(size, key)
    assert config["batch"] == demo.BATCH
    assert config["dump"] == {"fingerprint": demo.FINGERPRINT}
    assert config["student"]["init_args"]["layers"] == size.student_layers
    both = demo.WAYS[-1].losses
    assert config["distill"]["losses"] == {**both, "features_pen": 0.0}
    assert config["optimizer"]["init_args"]["lr"] == size.learning.learning_rate
    assert config["trainer"]["max_epochs"] == size.learning.epochs
    assert config["trainer"]["gradient_clip_val"] == train_teacher.MAX_NORM


def test_without_recordings_it_says_what_to_give(tmp_path):
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--size", "tiny"]
    for run in (demo.main, train_teacher.main, drift.main):
        with pytest.raises(SystemExit, match=r"error: there is no .*fsdd\.zip: nothing was read"):
            run(words)
    assert not (tmp_path / "runs").exists()


def test_package_runs_the_demo(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speech", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("examples.speech", run_name="__main__")
    assert ended.value.code == 0
    assert "--labelled" in capsys.readouterr().out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of another maker: as wav2vec 2.0's base, with a group norm, in eval mode."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = models.wav2vec2(
        num_classes=17, width=16, layers=6, heads=2, channels=(8, 8, 8), norm="group"
    ).config
    config.do_stable_layer_norm = False
    Wav2Vec2ForCTC(config).eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def batch(place):
    data = SpokenNumbers(folder=str(place.parent / "shared" / "data"), num_train=4, num_test=4)
    return collate(list(data.splits["test"]))


def sound_of(batch):
    return batch["input_values"], batch["attention_mask"]


def test_a_teacher_is_its_checkpoint(checkpoint, batch):
    teacher = models.Teacher(checkpoint)
    assert all(module.training for module in teacher.modules())
    found = teacher.eval()(*sound_of(batch))
    reference = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    sound, mask = sound_of(batch)
    torch.testing.assert_close(found["logits"], reference(sound, attention_mask=mask).logits)
    lengths = reference._get_feat_extract_output_lengths(mask.sum(dim=1))
    assert found["mask"].sum(dim=1).tolist() == lengths.tolist()
    assert len(set(lengths.tolist())) > 1
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in nowhere"):
        models.Teacher("nowhere")


def test_a_checkpoint_without_spec_augments_vector_is_the_same_in_every_process(
    checkpoint, tmp_path
):
    """As facebook/wav2vec2-base-960h is, whose settings ask for one."""
    shutil.copytree(checkpoint, tmp_path / "asks")
    settings = json.loads((tmp_path / "asks" / "config.json").read_text())
    settings |= {"mask_time_prob": 0.05, "apply_spec_augment": True}
    (tmp_path / "asks" / "config.json").write_text(json.dumps(settings))
    made = Wav2Vec2ForCTC.from_pretrained(tmp_path / "asks").state_dict()
    assert "wav2vec2.masked_spec_embed" in made
    first, second = (models.load(tmp_path / "asks").state_dict() for _ in range(2))
    assert first.keys() == made.keys() - {"wav2vec2.masked_spec_embed"}
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("take", "chosen"), [("first_k", [0, 1, 2]), ("last_k", [3, 4, 5]), ("every_k", [0, 2, 4])]
)
def test_a_student_begins_with_the_teachers_layers(checkpoint, take, chosen):
    student = models.Student(checkpoint, layers=3, take=take).model.state_dict()
    teacher = load_file(f"{checkpoint}/model.safetensors")
    layers = "wav2vec2.encoder.layers."
    for number, source in enumerate(chosen):
        names = [name for name in teacher if name.startswith(f"{layers}{source}.")]
        assert len(names) > 10
        for name in names:
            own = name.replace(f"{layers}{source}.", f"{layers}{number}.")
            assert torch.equal(student.pop(own), teacher[name])
    assert not any(name.startswith(layers) for name in student)
    same = {name: torch.equal(student[name], teacher[name]) for name in student if name in teacher}
    assert all(same.values())
    assert {"lm_head.weight", "wav2vec2.feature_extractor.conv_layers.0.conv.weight"} <= set(same)


@pytest.mark.parametrize(
    ("available", "wanted", "take", "chosen"),
    [(12, 4, "every_k", [0, 3, 6, 9]), (5, 2, "every_k", [0, 2]), (3, 3, "last_k", [0, 1, 2])],
)
def test_chosen_layers(available, wanted, take, chosen):
    assert models.chosen_layers(available, wanted, take) == chosen


def test_layers_that_are_not_there_are_refused(checkpoint):
    for wanted in (0, 7):
        with pytest.raises(ValueError, match=f"a student of {wanted} layers cannot be made of"):
            models.Student(checkpoint, layers=wanted)
    with pytest.raises(ValueError, match="no way 'middle'; it is one of first_k, last_k, every_k"):
        models.Student(checkpoint, layers=2, take="middle")


def test_the_penalty_is_its_formula(checkpoint, batch):
    """For one utterance, where there is no padding: the mean square of all features."""
    student = models.Student(checkpoint, layers=1)
    alone = batch["input_values"][:1, : int(batch["attention_mask"][0].sum())]
    found = student(alone, torch.ones_like(alone).long())["loss"]["features_pen"]
    features = student.model.wav2vec2.feature_extractor(alone)
    torch.testing.assert_close(found, features.pow(2).mean())
    found.backward()
    first = student.model.wav2vec2.feature_extractor.conv_layers[0].conv.weight
    assert float(first.grad.abs().sum()) > 0
    assert student.model.lm_head.weight.grad is None


def test_padding_is_not_penalised():
    features, mask = torch.tensor([[[1.0], [3.0]], [[2.0], [9.0]]]), torch.tensor([[1, 1], [1, 0]])
    assert float(models.features_penalty(features, mask.bool())) == pytest.approx(14 / 3)


def test_the_ctc_loss_is_transformers_own(checkpoint, batch):
    student = models.Student(checkpoint, layers=6).eval()
    found = student(*sound_of(batch), batch["labels"])["loss"]["student_loss"]
    reference = Wav2Vec2ForCTC.from_pretrained(
        checkpoint, ctc_loss_reduction="sum", ctc_zero_infinity=True
    )
    sound, mask = sound_of(batch)
    nats = reference(sound, attention_mask=mask, labels=batch["labels"]).loss
    torch.testing.assert_close(found, nats / (batch["labels"] >= 0).sum())


def test_only_transcripts_that_are_known_count(checkpoint, batch):
    student = models.Student(checkpoint, layers=1).eval()
    labels = batch["labels"].clone()
    labels[1:] = models.IGNORE_INDEX
    sound, mask = sound_of(batch)
    found = student(sound, mask, labels)["loss"]["student_loss"]
    logits = student(sound, mask)["logits"]
    frames = student(sound, mask)["mask"]
    torch.testing.assert_close(found, models.ctc_loss(logits[:1], frames[:1], labels[:1]))
    none = student(sound, mask, torch.full_like(labels, models.IGNORE_INDEX))["loss"]
    assert none["student_loss"].item() == 0
    none["student_loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())
    empty = torch.empty(len(labels), 0, dtype=torch.int64)  # as batches of unknown texts are
    assert student(sound, mask, empty)["loss"]["student_loss"].item() == 0


def test_the_head_spells_the_digits():
    assert SIZES["small"].teacher.make().config.vocab_size == len(DIGITS)


class Untrained(torch.nn.Module):
    """A teacher with random weights, sure enough of itself for padding to make a difference."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.model = models.wav2vec2(
            num_classes=17, width=16, layers=1, heads=2, channels=(8, 8, 8), norm=norm
        )
        with torch.no_grad():
            self.model.lm_head.weight.mul_(20)

    forward = models.Teacher.forward


def test_padding_drifts_through_a_group_norm_alone(place):
    data = SpokenNumbers(folder=str(place.parent / "shared" / "data"), num_train=4, num_test=24)
    dataset = data.splits["test"]
    found = {
        (norm, how): drift.measure(Untrained(norm).eval(), dataset, batches)
        for norm in drift.NORMS
        for how, batches in drift.orders(len(dataset)).items()
    }
    any_lengths, like_lengths, alone = drift.orders(len(dataset))
    for how in (any_lengths, like_lengths):
        assert found["layer", how].mean_kl < 1e-9
        assert found["group", how].mean_kl > 1e-6
        assert found["group", how].max_kl > found["group", how].mean_kl
    assert found["group", like_lengths].mean_kl < found["group", any_lengths].mean_kl
    assert found["group", like_lengths].padding < found["group", any_lengths].padding
    for norm in drift.NORMS:
        assert found[norm, alone].padding == found[norm, alone].mean_kl == 0
    rates = {found["layer", how].word_error_rate for how in drift.orders(len(dataset))}
    assert len(rates) == 1
