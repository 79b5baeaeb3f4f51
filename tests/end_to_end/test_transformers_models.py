"""Hugging Face models by class path, as teachers and students; small, made on the spot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_model

import kdcache
from kdcache import cli
from kdcache.errors import DataError, MismatchError
from tests.data.toys import Samples
from tests.train import small

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

VOCABULARY, PADDED = 61, 64

MODULE = '''
"""Data of the test's own; the collate function is transformers'."""
import torch
from torch.utils.data import DataLoader

import token_source


class Data:
    def __init__(self, order: str = "abc"):
        self.tokenizer = token_source.tokenizer(order)

    def loader(self, count, seed):
        return DataLoader(
            token_source.samples(count, seed), batch_size=4, collate_fn=token_source.collate
        )

    def train_dataloader(self):
        return self.loader(12, 0)

    def val_dataloader(self):
        return {"held": self.loader(8, 1)}
'''
SOURCE = """
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast


def tokenizer(order="abc"):
    words = ["[PAD]", *order] + [f"w{n}" for n in range(57)]
    model = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]")


collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count,), generator=generator).tolist()
    ids = [torch.randint(1, 61, (n,), generator=generator).tolist() for n in lengths]
    return [{"input_ids": one, "attention_mask": [1] * len(one)} for one in ids]


def collate(samples):
    return dict(collator([dict(sample) for sample in samples]))
"""


def gpt2(seed, vocab_size=VOCABULARY, n_layer=2):
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=16,
        n_embd=16,
        n_layer=n_layer,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(40)  # targets that are not flat
    return model


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A folder with a data module, a teacher as transformers saves it, and an experiment."""
    (tmp_path / "token_data.py").write_text(MODULE)
    (tmp_path / "token_source.py").write_text(SOURCE)
    gpt2(0, PADDED).save_pretrained(tmp_path / "teacher")
    gpt2(1, VOCABULARY, 1).save_pretrained(tmp_path / "student")
    loader = "transformers.AutoModelForCausalLM.from_pretrained"
    experiment = {
        "cache": "t.zarr",
        "data": {"class_path": "token_data.Data"},
        "batch": {"causal": True, "num_classes": VOCABULARY},
        "teacher": {
            "class_path": loader,
            "init_args": {"pretrained_model_name_or_path": "teacher"},
        },
        "targets": {"codec": "topk", "k": 8, "temperatures": [1, 2]},
        "student": {
            "class_path": loader,
            "init_args": {"pretrained_model_name_or_path": "student"},
        },
        "distill": {"temperature": 2.0, "losses": {"kd_loss": 0.9, "student_loss": 0.1}},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "accumulate_grad_batches": 2},
        "dump": {"accelerator": "cpu"},
        "output": "run",
        "progress": False,
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("token_data", "token_source"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("head", ["logits", "hidden"])
def test_a_causal_language_model_through_the_command_line(user, capsys, head):
    assert cli.main(["dump-teacher", "-c", "experiment.yaml"]) == 0
    cache = kdcache.open_cache("t.zarr")
    manifest = cache["train"].manifest
    assert manifest.num_classes == VOCABULARY
    assert manifest.identity["vocabulary"].startswith("xxh3:")
    assert "causal=True num_classes=61" in manifest.identity["batch"]
    command = ["train-student", "-c", "experiment.yaml", "--distill.head", head]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "held" in shown
    assert "cross-entropy" in shown
    assert Path("run/student.safetensors").is_file()
    assert "pretrained    run/pretrained" in shown
    reloaded = transformers.AutoModelForCausalLM.from_pretrained("run/pretrained")
    plain = gpt2(2, VOCABULARY, 1)
    load_model(plain, "run/student.safetensors", strict=True)
    for name, value in plain.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value)
    words = transformers.AutoTokenizer.from_pretrained("run/pretrained").get_vocab()
    assert len(words) == VOCABULARY
    again = [*command, "--output", "again", "--student.weights", "run/student.safetensors"]
    assert cli.main(again) == 0

    from token_source import collate, samples

    held = samples(8, 1)
    targets = kdcache.CachedDataset(
        Samples(held), cache, split="held", collate_fn=collate, batch={"causal": True}
    )
    found = targets.collate_fn(targets.__getitems__([0, 3]))
    teacher = transformers.GPT2LMHeadModel.from_pretrained("teacher").eval()
    rows = []
    for n in (0, 3):
        with torch.no_grad():
            logits = teacher(torch.tensor([held[n]["input_ids"]])).logits[0, :-1, :VOCABULARY]
        rows.append(logits.log_softmax(-1).topk(8).values)
    torch.testing.assert_close(found.targets.log_p.float(), torch.cat(rows), rtol=2e-3, atol=2e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_another_vocabulary_is_refused(user, capsys):
    assert cli.main(["dump-teacher", "-c", "experiment.yaml"]) == 0
    code = cli.main(["train-student", "-c", "experiment.yaml", "--data.order", "acb"])
    assert code == 1
    assert "tokenizer's vocabulary" in capsys.readouterr().err
    # A dump that goes on with another tokenizer is refused as well.
    code = cli.main(["dump-teacher", "-c", "experiment.yaml", "--data.order", "acb"])
    assert code == 1
    assert "vocabulary" in capsys.readouterr().err
    assert MismatchError.exit_code == 1


def test_a_padded_vocabulary_needs_its_true_size(tmp_path):
    """Without it the padding's classes would take part in every softmax."""
    ids = torch.randint(1, VOCABULARY, (6, 5), generator=torch.Generator().manual_seed(0))
    samples = Samples([{"input_ids": row} for row in ids])
    loader = torch.utils.data.DataLoader(samples, batch_size=2)
    cache = kdcache.dump_teacher(
        gpt2(0, PADDED), loader, tmp_path / "t.zarr", accelerator="cpu", progress=False
    )
    module = kdcache.StudentModule(gpt2(1, VOCABULARY, 1))
    joined = kdcache.CachedDataset(samples, cache["train"]).loader_like(loader)

    with pytest.raises(DataError, match=r"61 classes, the teacher's targets 64.*num_classes"):
        small.trainer().fit(module, joined)
    with pytest.raises(DataError, match=r"61 classes, batch\.num_classes says that 64"):
        kdcache.dump_teacher(
            gpt2(1, VOCABULARY),
            loader,
            tmp_path / "u.zarr",
            batch={"num_classes": 64},
            accelerator="cpu",
            progress=False,
        )


class Frames(torch.nn.Module):
    """wav2vec 2.0 with a CTC head, and the mask of its frames, which only it can know."""

    def __init__(self, seed: int, layers: int) -> None:
        super().__init__()
        config = transformers.Wav2Vec2Config(
            vocab_size=7,
            hidden_size=8,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8, 8),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            mask_time_prob=0.0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = transformers.Wav2Vec2ForCTC(config)

    def forward(self, input_values, attention_mask):
        logits = self.model(input_values, attention_mask=attention_mask).logits
        mask = self.model._get_feature_vector_attention_mask(logits.shape[1], attention_mask)
        return {"logits": logits, "mask": mask}


def pad_audio(samples):
    length = max(map(len, samples))
    values = torch.zeros(len(samples), length)
    mask = torch.zeros(len(samples), length, dtype=torch.int64)
    for row, sample in enumerate(samples):
        values[row, : len(sample)], mask[row, : len(sample)] = sample, 1
    return {"input_values": values, "attention_mask": mask}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_ctc_head_whose_frames_are_no_samples(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(200, 400, (8,), generator=generator).tolist()
    samples = Samples([torch.randn(n, generator=generator) for n in lengths])
    loader = torch.utils.data.DataLoader(samples, batch_size=3, collate_fn=pad_audio)
    mapping = {
        "inputs": {"input_values": "input_values", "attention_mask": "attention_mask"},
        "mask": "output:mask",
    }
    teacher = Frames(0, 2).eval()
    cache = kdcache.dump_teacher(
        teacher,
        loader,
        tmp_path / "t.zarr",
        batch=mapping,
        accelerator="cpu",
        progress=False,
        codec=kdcache.DenseCodec(dtype="float32"),
    )
    joined = kdcache.CachedDataset(
        samples, cache["train"], batch=mapping, collate_fn=pad_audio
    ).loader_like(loader)
    for batch, targets in joined:
        with torch.no_grad():
            live = teacher(**batch)
        assert targets.num_positions.tolist() == live["mask"].sum(1).tolist()
        torch.testing.assert_close(
            targets.logits(), live["logits"][live["mask"].bool()], rtol=1e-3, atol=1e-4
        )

    student = Frames(1, 1)
    module = kdcache.StudentModule(student, batch=mapping, learning_rate=1e-2)
    trace = small.Trace()
    small.trainer(callbacks=[trace], max_epochs=4).fit(module, module.windowed(joined))
    assert trace.steps[-1]["train_kd_loss"] < trace.steps[0]["train_kd_loss"]
