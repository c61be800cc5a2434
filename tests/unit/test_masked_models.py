"""Masked language models (BERT, RoBERTa, ModernBERT, ESM ...): each computes what its own class does, and decodes a row
alone as in a batch and up to its last position, or is refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from components.core.errors import DataError, SettingsError
from components.core.rng import generator
from components.decode.engine import rollout
from components.decode.job import Job
from components.decode.prompts import Prompts
from components.denoisers import load, with_cache
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.heuristics import Threshold
from components.tasks.example import Example, Score
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, optimizer_for, reinforce
from tests.unit.test_denoisers import VOCABULARY, fill, logits_of, refused

torch.set_num_threads(1)

SHAPE: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
)
MASKED: dict[str, dict[str, Any]] = {
    "Bert": {**SHAPE, "max_position_embeddings": 48},
    "Roberta": {**SHAPE, "max_position_embeddings": 50, "pad_token_id": 1},
    "DistilBert": {
        "vocab_size": VOCABULARY,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 48,
    },
    "ModernBert": {
        **SHAPE,
        "max_position_embeddings": 48,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "Esm": {
        **SHAPE,
        "max_position_embeddings": 48,
        "pad_token_id": 0,
        "mask_token_id": 4,
        "position_embedding_type": "rotary",
        "token_dropout": True,
    },
}


def masked_tokenizer(pad: int) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]"] if pad == 0 else ["[UNK]", "[PAD]"]
    pieces = [*special, "[CLS]", "[SEP]", "[MASK]", *"abcdefgh.0123456789 "]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    from tokenizers.processors import TemplateProcessing

    core.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def write_masked(folder: Path, name: str) -> Any:
    config = getattr(transformers, f"{name}Config")(**MASKED["Roberta" if name == "IBert" else name])
    model = fill(getattr(transformers, f"{name}ForMaskedLM")(config))
    model.save_pretrained(folder)
    masked_tokenizer(model.config.pad_token_id or 0).save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_language_model_is_its_own_class_bit_for_bit(name: str, tmp_path: Path):
    model = write_masked(tmp_path, name)
    denoiser, encoder = load(tmp_path)
    ids_BT = torch.randint(5, 25, (3, 11), generator=generator("ids"))
    with torch.no_grad():
        wanted = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
    assert torch.equal(logits_of(denoiser, ids_BT), wanted)  # type: ignore[arg-type]
    assert denoiser.mask_id == 4 and 4 in denoiser.forbidden_ids.tolist()
    assert denoiser.positions == 48
    assert encoder.prompt("ab").tolist()[0] == 2 and encoder.prompt("ab").tolist()[-1] != 3
    assert 3 in encoder.end_ids
    done = rollout(denoiser, Threshold(0.9), Job.of([encoder.prompt(t) for t in ("ab", "abc 1", "c")], 8, 4))
    assert bool(done.finished_R.all())
    with pytest.raises(SettingsError, match="cache"):
        with_cache(denoiser, "dual")


def test_a_bert_with_the_heads_of_its_pretraining_loads_and_one_with_a_stranger_s_does_not(tmp_path: Path):
    """The first BERT checkpoints hold the pooler and the head of next-sentence prediction too."""
    model = write_masked(tmp_path, "Bert")
    ids_BT = torch.randint(5, 25, (2, 7), generator=generator("ids"))
    file = tmp_path / "model.safetensors"
    more = {"bert.pooler.dense.weight": torch.ones(16, 16), "cls.seq_relationship.bias": torch.ones(2)}
    save_file(load_file(file) | more, file, {"format": "pt"})
    with torch.no_grad():
        wanted = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
    assert torch.equal(logits_of(load(tmp_path)[0], ids_BT), wanted)  # type: ignore[arg-type]
    save_file(load_file(file) | {"bert.encoder.adapter.weight": torch.ones(2)}, file, {"format": "pt"})
    refused(tmp_path, str(tmp_path), "unexpected_keys", "adapter")


@pytest.mark.parametrize("name", ["Roberta", "IBert", "Bert"])
def test_a_masked_language_model_decodes_rows_up_to_its_last_position(name: str, tmp_path: Path):
    """RoBERTa's table holds rows for padding and what is before it; I-BERT's is no ``nn.Embedding``."""
    write_masked(tmp_path, name)
    denoiser, _ = load(tmp_path)
    assert denoiser.positions == 48
    assert bool(rollout(denoiser, Threshold(0.9), Job.of([torch.full((40,), 5)], 8, 4)).finished_R.all())
    with pytest.raises(DataError, match="49"):
        rollout(denoiser, Threshold(0.9), Job.of([torch.full((41,), 5)], 8, 4))


def test_a_masked_language_model_with_a_decoder_is_refused(tmp_path: Path):
    sizes: dict[str, Any] = {"d_model": 16, "max_position_embeddings": 48}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_ffn_dim": 16, f"{side}_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=VOCABULARY, pad_token_id=0, **sizes)
    fill(transformers.BartForConditionalGeneration(config)).save_pretrained(tmp_path)
    masked_tokenizer(0).save_pretrained(tmp_path)
    refused(tmp_path, str(tmp_path), "BartForConditionalGeneration is no encoder with a head")


def test_a_masked_language_model_that_attends_by_latents_is_refused(tmp_path: Path):
    """Perceiver's config has neither of two names that every other class has."""
    sizes: dict[str, Any] = {"d_model": 16, "d_latents": 16, "num_latents": 4, "num_self_attends_per_block": 1}
    sizes |= {"num_self_attention_heads": 2, "num_cross_attention_heads": 2, "qk_channels": 16, "v_channels": 16}
    config = transformers.PerceiverConfig(vocab_size=VOCABULARY, max_position_embeddings=48, **sizes)
    fill(transformers.PerceiverForMaskedLM(config)).save_pretrained(tmp_path)
    masked_tokenizer(0).save_pretrained(tmp_path)
    refused(tmp_path, str(tmp_path), "PerceiverForMaskedLM")


def test_a_masked_language_model_of_images_and_text_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernvbert"}), encoding="utf-8")
    refused(tmp_path, str(tmp_path), "ModernVBertConfig has no vocab_size")


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_language_model_decodes_a_row_alone_as_in_a_batch(name: str, tmp_path: Path):
    write_masked(tmp_path, name)
    denoiser, encoder = load(tmp_path, dtype="float64")
    prompts = [encoder.prompt(t) for t in ("a", "abcdef 12", "abc")]
    whole = rollout(denoiser, Threshold(0.5), Job.of(prompts, 8, 8, uids=[0, 1, 2]))
    for i, prompt in enumerate(prompts):
        alone = rollout(denoiser, Threshold(0.5), Job.of([prompt], 8, 8, uids=[i]))
        assert torch.equal(alone.canvas_RL[0], whole.canvas_RL[i])
        assert torch.equal(alone.order_RL[0], whole.order_RL[i])


@dataclass(frozen=True)
class FreeText:
    """A task whose score tells texts apart, so that different orders are rewarded differently."""

    canvas_length: int = 8
    name: str = "free"
    alphabet: str = "abcdefgh"

    def sample(self, index: int, seed: int) -> Example:
        return Example(self.name, "abcdefgh"[index % 8] + "abc"[index % 3], "a" * self.canvas_length)

    def score(self, text: str, example: Example) -> Score:
        return Score(0.0, sum(map(ord, text)) % 7 / 7)


def test_a_masked_language_model_trains_a_policy_that_reads_its_hidden_states(tmp_path: Path):
    write_masked(tmp_path, "Bert")
    denoiser, encoder = load(tmp_path)
    task = FreeText()
    prompts = Prompts.of(task, [task.sample(i, 0) for i in range(8)], encoder)  # type: ignore[arg-type]
    torch.manual_seed(0)
    policy = ConfidencePolicy(Shape(width=16, heads=1, mlp_width=16, bias=0.0, features=denoiser.width))
    policy.denoiser = denoiser.fingerprint
    plan = Plan(iterations=2, prompts=4, group=4, learning_rate=1e-2, seed=0, block_length=None, warmup=0)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    method = Method(plan, Objective(signal="dense"))
    seen = [metrics for _, metrics in reinforce(policy, optimizer_for(policy, plan), denoiser, prompts, method)]
    assert len(seen) == 2 and seen[0]["reward/mixed_groups"] > 0
    assert not torch.equal(before["features.weight"], policy.features.weight)
