"""T5, BART and Whisper with what their collators give, and no ``batch:`` at all."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

import kdcache
from kdcache.errors import DataError
from tests.data.toys import LOSSLESS, Samples
from tests.train import small

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

N, VOCABULARY, PAD, BOS, EOS = 10, 31, 0, 1, 2
IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}


def made(model_class, config, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config).eval()


def t5(seed, layers=1):
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=layers,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        **IDS,
    )
    return made(transformers.T5ForConditionalGeneration, config, seed)


SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "dropout": 0.0,
    "decoder_start_token_id": BOS,
    **IDS,
}


def bart(seed, layers=1):
    config = transformers.BartConfig(
        encoder_layers=layers, decoder_layers=layers, max_position_embeddings=24, **SIZES
    )
    return made(transformers.BartForConditionalGeneration, config, seed)


def whisper(seed, layers=1):
    config = transformers.WhisperConfig(
        num_mel_bins=4,
        max_source_positions=10,
        max_target_positions=16,
        encoder_layers=layers,
        decoder_layers=layers,
        **SIZES,
    )
    return made(transformers.WhisperForConditionalGeneration, config, seed)


def token_lists(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (N,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def tokenizer():
    model = tokenizers.models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w3")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), pad_token="w0"
    )


def for_seq2seq(model):
    """transformers' collator, which makes decoder inputs itself where it knows the model."""
    collator = transformers.DataCollatorForSeq2Seq(tokenizer(), model=model)
    return lambda samples: collator([dict(sample) for sample in samples])


def for_speech(samples):
    """As in Hugging Face's course on Whisper: padded features, labels padded with -100."""
    labels = [sample["labels"] for sample in samples]
    longest = max(map(len, labels))
    padded = [one + [-100] * (longest - len(one)) for one in labels]
    features = torch.stack([sample["input_features"] for sample in samples])
    return transformers.BatchFeature({"input_features": features, "labels": torch.tensor(padded)})


TEXTS = [
    {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    for ids, labels in zip(token_lists(0), token_lists(1), strict=True)
]
SPEECH = [
    {
        "input_features": torch.randn(4, 20, generator=torch.Generator().manual_seed(n)),
        "labels": one,
    }
    for n, one in enumerate(token_lists(1))
]
TEXT_INPUTS = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
OF_SPEECH = {"input_features": "input_features"}

# name -> model, samples, from a model to a collate function, its inputs but the decoder's
CASES = {
    "T5": (t5, TEXTS, lambda _: for_seq2seq(None), TEXT_INPUTS),
    "T5, collator with the model": (t5, TEXTS, for_seq2seq, TEXT_INPUTS),
    "BART": (bart, TEXTS, lambda _: for_seq2seq(None), TEXT_INPUTS),
    "Whisper": (whisper, SPEECH, lambda _: for_speech, OF_SPEECH),
}


def run(folder, case, batch, **options):
    """A dump, a training, a validation: what came out, and the cache's split."""
    make, samples, collate, _ = CASES[case]
    teacher = make(0, 2)
    loader = DataLoader(Samples(samples), batch_size=4, collate_fn=collate(teacher))
    cache = kdcache.dump_teacher(
        teacher,
        {"train": loader, "test": loader},
        folder / "t.zarr",
        batch=batch,
        codec=LOSSLESS,
        accelerator="cpu",
        progress=False,
    )
    found = kdcache.train_student(
        make(1),
        small.Data(loader, test=loader),
        folder / "t.zarr",
        batch=batch,
        losses={"kd_loss": 0.5, "student_loss": 0.5},
        output=folder / "run",
        progress=False,
        trainer={"max_epochs": 2, "accelerator": "cpu"},
        **options,
    )
    return found, cache["train"]


@pytest.mark.parametrize("case", CASES)
def test_without_a_mapping_is_as_with_an_explicit_one(tmp_path, case):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found, view = run(tmp_path / "a", case, None)
    explicit = {
        "inputs": {**CASES[case][3], "labels": "labels"},  # the model shifts them itself
        "labels": "labels",
        "mask": "labelled",
    }
    wanted, other = run(tmp_path / "b", case, explicit)
    assert found.metrics.keys() == wanted.metrics.keys()
    for name, value in wanted.metrics.items():  # the model's own cross entropy, and ours
        assert found.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    positions, labelled = ([total(one, name) for one in (view, other)] for name in COUNTS)
    assert positions == labelled == [sum(len(one["labels"]) for one in CASES[case][1])] * 2


COUNTS = ("positions", "labelled")


def total(view, name):
    return sum(commit.statistics[name] for commit in view.commits)


@pytest.mark.parametrize("case", CASES)
def test_targets_are_what_the_model_says_of_labels(tmp_path, case):
    make, samples, collate, inputs = CASES[case]
    teacher = make(0, 2)
    loader = DataLoader(Samples(samples), batch_size=4, collate_fn=collate(teacher))
    cache = kdcache.dump_teacher(
        teacher, loader, tmp_path / "t.zarr", codec=LOSSLESS, accelerator="cpu", progress=False
    )
    joined = kdcache.CachedDataset(Samples(samples), cache["train"], collate_fn=collate(teacher))
    for batch, targets in joined.loader_like(loader):
        given = {name: batch[name] for name in (*inputs, "labels")}
        with torch.no_grad():
            logits = teacher(**given).logits
        real = batch["labels"] != -100
        assert targets.num_positions.tolist() == real.sum(1).tolist()
        torch.testing.assert_close(targets.logits(), logits[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["T5", "Whisper"])
def test_a_run_over_accumulated_batches_and_hidden_states(tmp_path, case):
    """Both need the decoder's inputs rather than labels: the losses are ours alone."""
    make, samples, collate, _ = CASES[case]
    loader = DataLoader(Samples(samples), batch_size=4, collate_fn=collate(make(0)))
    kdcache.dump_teacher(make(0, 2), loader, tmp_path / "t.zarr", accelerator="cpu", progress=False)
    heads = {}
    for head in ("logits", "hidden") if case == "Whisper" else ("logits",):
        heads[head] = kdcache.train_student(
            make(1),
            loader,
            tmp_path / "t.zarr",
            losses={"kd_loss": 0.5, "student_loss": 0.5},
            head=head,
            output=tmp_path / head,
            progress=False,
            trainer={"max_epochs": 1, "accelerator": "cpu", "accumulate_grad_batches": 3},
        ).metrics
    for metrics in heads.values():
        assert metrics == pytest.approx(heads["logits"], rel=1e-4)


def test_a_classifier_with_a_decoder_gets_no_labels(tmp_path):
    config = transformers.BartConfig(
        encoder_layers=1, decoder_layers=1, max_position_embeddings=24, num_labels=3, **SIZES
    )
    samples = [{"input_ids": torch.tensor([5, 6, 7, EOS]), "labels": n % 3} for n in range(6)]
    cache = kdcache.dump_teacher(
        made(transformers.BartForSequenceClassification, config, 0),
        DataLoader(Samples(samples), batch_size=3),
        tmp_path / "t.zarr",
        accelerator="cpu",
        progress=False,
    )
    batch = cache["train"].manifest.identity["batch"]
    assert batch.startswith("inputs={'input_ids': 'input_ids'} labels=labels mask=None")


def test_a_model_of_two_towers_is_refused(tmp_path):
    """CLIP's batch looks like any other; what it returns are no logits of a class a position."""
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": VOCABULARY, "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    samples = [
        {"input_ids": torch.tensor([5, 6, EOS]), "pixel_values": torch.randn(3, 8, 8)}
        for _ in range(4)
    ]
    with pytest.raises(DataError, match="CLIPOutput without logits"):
        kdcache.dump_teacher(
            made(transformers.CLIPModel, config, 0),
            DataLoader(Samples(samples), batch_size=2),
            tmp_path / "t.zarr",
            accelerator="cpu",
            progress=False,
        )
