"""The plain loop and the Trainer recipe: an accumulated step is the gradient of the joint batch.

The reference is written out here: every sequence alone, without padding, against the teacher's own
logits; sums over the whole step, divided once.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

import kdcache
from examples.language_model import demo, hugging_face_trainer, plain_loop
from examples.language_model.data import IGNORE_INDEX, TokenDataset, collate
from examples.language_model.hugging_face_trainer import DistillationTrainer, TargetsInBatch
from examples.language_model.models import gpt2
from examples.language_model.perplexity import BATCH
from tests.examples.small_text import write_text
from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]
CLASSES, LENGTHS = 50, (2, 24, 3, 24, 9, 17, 2, 5)
SHAPE = {"vocabulary": CLASSES, "max_length": 24, "layers": 1, "heads": 2}


def partly_labelled(samples):
    """Only even tokens have a label: labelled positions are others than valid positions."""
    batch = collate(samples)
    is_odd = batch["labels"] % 2 == 1
    return {**batch, "labels": batch["labels"].masked_fill(is_odd, IGNORE_INDEX)}


def make_student():
    torch.manual_seed(1)
    return gpt2(width=16, **SHAPE)


def make_teacher():
    torch.manual_seed(0)
    return gpt2(width=32, **SHAPE).eval()


def make_dataset():
    chance = torch.Generator().manual_seed(0)
    return TokenDataset(
        [torch.randint(0, CLASSES, (length,), generator=chance) for length in LENGTHS]
    )


def join(cache):
    return kdcache.CachedDataset(
        make_dataset(), cache, batch={"causal": True}, collate_fn=partly_labelled
    )


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Sequences of very different length, with the exact logits of a teacher."""
    dataset = make_dataset()
    path = tmp_path_factory.mktemp("loops") / "teacher.zarr"
    kdcache.dump_teacher(
        make_teacher(),
        DataLoader(dataset, batch_size=3, collate_fn=partly_labelled),
        path,
        codec=kdcache.DenseCodec(dtype="float32"),
        batch={"causal": True},
        accelerator="cpu",
    )
    return join(path)


def loss_parts(student, sequence):
    """Sums over one sequence: KL, cross entropy; and what each of them counts."""
    ids = sequence.unsqueeze(0)
    with torch.no_grad():
        log_p = make_teacher()(input_ids=ids).logits[0, :-1].log_softmax(-1)
    log_q = student(input_ids=ids).logits[0, :-1].log_softmax(-1)
    following = sequence[1:]
    known = following % 2 == 0
    divergence = (log_p.exp() * (log_p - log_q)).sum()
    nats = F.nll_loss(log_q[known], following[known], reduction="sum")
    return divergence, nats, len(following), int(known.sum())


def means(student, sequences):
    """KL per position and cross entropy per label, over all sequences together."""
    parts = [loss_parts(student, sequence) for sequence in sequences]
    divergence, nats, positions, labelled = map(sum, zip(*parts, strict=True))
    return divergence / positions, nats / labelled


def joint_gradient(sequences):
    """Of the objective on all sequences as one batch."""
    student = make_student()
    divergence, nats = means(student, sequences)
    (0.9 * divergence + 0.1 * nats).backward()
    return gradient(student)


def mean_of_means(batches):
    """What plain accumulation gives: every micro-batch's own mean, averaged."""
    gradients = [joint_gradient(sequences) for sequences in batches]
    return sum(gradients) / len(gradients)


def gradient(student):
    return torch.cat([p.grad.detach().reshape(-1) for p in student.parameters()])


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def sequences_of(batch):
    return [
        ids[mask.bool()]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


# --- the plain loop


def test_plain_loop_accumulates_exactly(joined):
    groups = ([0, 1, 2], [3], [4, 5, 6, 7])
    window = [joined.collate_fn(joined.__getitems__(list(group))) for group in groups]
    student = make_student()
    loss = plain_loop.accumulate(student, window)
    expected = joint_gradient(joined.dataset.sequences)
    assert relative_error(gradient(student), expected) < 1e-5
    with torch.no_grad():
        divergence, nats = means(make_student(), joined.dataset.sequences)
    assert loss == pytest.approx(float(0.9 * divergence + 0.1 * nats), rel=1e-5)
    naive = mean_of_means([sequences_of(one.batch) for one in window])
    assert relative_error(naive, expected) > 0.02  # what this test would find


def test_plain_loop_counts_positions_and_labels(joined):
    window = [
        joined.collate_fn(joined.__getitems__([0, 1])),
        joined.collate_fn(joined.__getitems__([2])),
    ]
    counts = kdcache.step_counts(window, BATCH)
    following = torch.cat([joined.dataset.sequences[number][1:] for number in (0, 1, 2)])
    assert counts.positions == len(following) == 1 + 23 + 2
    assert counts.labelled == int((following % 2 == 0).sum()) < counts.positions
    assert counts.batches == 2


def test_windows_lose_nothing():
    assert list(plain_loop.windows(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]


# --- the Trainer


class Recorder(TrainerCallback):
    """The gradient of every step, just before the optimiser uses it."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.gradients.append(gradient(model))


class RecordingCollator(TargetsInBatch):
    """Remembers which sequences came in which micro-batch."""

    def __init__(self, joined):
        super().__init__(joined)
        self.batches = []

    def __call__(self, samples):
        batch = super().__call__(samples)
        self.batches.append(sequences_of(batch))
        return batch


def make_trainer(folder, joined, collator, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        max_grad_norm=0.0,
        optim="sgd",
        learning_rate=0.0,
        **options,
    )
    return DistillationTrainer(
        model=make_student(),
        args=arguments,
        data_collator=collator,
        train_dataset=joined,
        eval_dataset=joined,
    )


def test_trainer_accumulates_exactly(joined, tmp_path):
    """Both steps of an epoch: three micro-batches, and the one that is left."""
    collator, recorder = RecordingCollator(joined), Recorder()
    trainer = make_trainer(
        tmp_path,
        joined,
        collator,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        num_train_epochs=1,
    )
    trainer.add_callback(recorder)
    trainer.train()
    assert [len(batch) for batch in collator.batches] == [2, 2, 2, 2]
    assert len(recorder.gradients) == 2
    for found, batches in zip(
        recorder.gradients, (collator.batches[:3], collator.batches[3:]), strict=True
    ):
        expected = joint_gradient([sequence for batch in batches for sequence in batch])
        assert relative_error(found, expected) < 1e-5
    naive = mean_of_means(collator.batches[:3])
    assert relative_error(naive, recorder.gradients[0]) > 0.02  # what this test would find


def test_trainer_scores_tokens_and_not_batches(joined, tmp_path):
    trainer = make_trainer(tmp_path, joined, TargetsInBatch(joined), per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    with torch.no_grad():
        divergence, nats = means(make_student(), joined.dataset.sequences)
    assert metrics["eval_teacher_kl"] == pytest.approx(float(divergence), rel=1e-4)
    assert metrics["eval_cross_entropy"] == pytest.approx(float(nats), rel=1e-4)
    assert trainer.state.log_history[-1]["eval_teacher_kl"] == metrics["eval_teacher_kl"]


def test_trainer_is_exact_on_two_processes(joined, tmp_path):
    """A step of two micro-batches on each of two processes is the joint batch of all four."""
    script, cache = ROOT / "tests" / "examples" / "trainer_ranks.py", joined.view.folder.parents[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common = {**os.environ, **meeting, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(cache), str(tmp_path)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        endings = [process.communicate(timeout=HANG_S) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], endings
    seen, gradients = [], []
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert [len(batch) for batch in found["batches"]] == [2, 2]
        seen += [sequence for batch in found["batches"] for sequence in batch]
        gradients.append(found["gradient"])
    assert sorted(len(sequence) for sequence in seen) == sorted(LENGTHS)
    expected = joint_gradient(joined.dataset.sequences)
    for found in gradients:
        assert relative_error(found, expected) < 1e-5


# --- both scripts, after the demo


@pytest.fixture(scope="module")
def after_demo(tmp_path_factory):
    """What the demo leaves: text, tokenizer, top-k cache."""
    text, out = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("demo") / "runs"
    write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.Demo, "train_students", lambda *_: sys.exit("enough"))
        with pytest.raises(SystemExit, match="enough"):
            demo.main(["--data", str(text), "--out", str(out), "--size", "tiny"])
    return ["--data", str(text), "--out", str(out), "--size", "tiny"], out


def test_plain_loop_script(after_demo, capsys):
    words, _ = after_demo
    plain_loop.main([*words, "--micro-batches", "4"])
    printed = capsys.readouterr().out
    nats = float(re.search(r"cross_entropy ([\d.]+)", printed)[1])
    assert nats < 3.0  # 300 tokens at random: 5.7
    assert "teacher_kl" in printed


def test_trainer_script(after_demo, capsys):
    words, out = after_demo
    hugging_face_trainer.main(words)
    printed = capsys.readouterr().out
    nats = [float(found) for found in re.findall(r"eval_cross_entropy': '([\d.]+)", printed)]
    assert len(nats) == 4
    assert nats[-1] < nats[0]
    assert nats[-1] < 3.0
    assert (out / "trainer" / "model.safetensors").is_file()
