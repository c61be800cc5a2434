"""Checkpoint folder or hub name -> denoiser and tokenizer, without remote code.

LLaDA's own layout loads into LlamaForCausalLM by renaming keys, Dream's into Qwen2ForCausalLM as it is; both were
compared with the authors' code. A checkpoint that this project wrote is an ordinary Llama or Qwen2 folder whose config
also says ``mask_token_id`` and ``logits_shifted``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.core.errors import CheckpointError, DataError
from components.core.files import read_json
from components.denoisers.transformer import TransformerDenoiser, probe

MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>")

# One group each: replacements with a second group are not expanded by transformers 5.
LLADA_KEYS = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
NOT_SHAPE = ("model_type", "auto_map", "architectures", "dtype", "torch_dtype")
# What the native classes compute, whatever the config says.
MUST_BE: dict[str, dict[str, Any]] = {
    "llada": {
        "block_type": "llama",
        "rope": True,
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "scale_logits": False,
        "input_emb_norm": False,
        "attention_layer_norm": False,
        "block_group_size": 1,
    },
    # A block_size marks descendants that attend block by block.
    "Dream": {"hidden_act": "silu", "use_sliding_window": False, "use_mrope": False, "block_size": None},
}


@dataclass(frozen=True)
class Encoder:
    """Prompts to ids and ids to text, through the checkpoint's own tokenizer and chat template."""

    tokenizer: Any
    end_ids: frozenset[int]

    def prompt(self, text: str) -> Tensor:
        """int64 (length,): the chat with one user message, up to where the assistant begins."""
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        return torch.tensor(self.tokenizer(chat, add_special_tokens=False)["input_ids"], dtype=torch.int64)

    def answer(self, text: str, length: int) -> Tensor:
        """int64 (length,): the answer, then the end token up to the canvas length. DataError if it does not fit."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > length:
            raise DataError(
                f"the answer {text!r} takes {len(ids)} tokens, the canvas has {length}; its end would be "
                f"cut off; give the task a longer canvas"
            )
        return torch.tensor(ids + [self.tokenizer.eos_token_id] * (length - len(ids)), dtype=torch.int64)

    def token(self, token: int) -> str:
        """One position's text, an end token as it is written in the vocabulary."""
        return self.tokenizer.convert_ids_to_tokens(token) if token in self.end_ids else self.tokenizer.decode([token])

    def text(self, ids: Tensor) -> str:
        """The text before the first end token."""
        kept: list[str] = []
        for token in ids.tolist():
            if token in self.end_ids:
                break
            kept.append(token)
        return self.tokenizer.decode(kept, skip_special_tokens=False)


def read_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """config.json of a folder or hub repository. CheckpointError if it cannot be had."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(path, "config.json", revision=revision)
    except OSError as error:
        raise CheckpointError(
            f"no model at {path!r}: {str(error).splitlines()[0]}; a policy is trained over a frozen "
            f"dLLM; give a folder that holds one, or a hub name while online"
        ) from error
    return read_json(Path(str(found)), "Restore the file, or give another model.")


def load(
    path: str | Path, device: str = "cpu", dtype: str = "float32", revision: str | None = None
) -> tuple[TransformerDenoiser, Encoder]:
    """The denoiser and the encoder of a checkpoint, probed. ``dtype``: float32, bfloat16 or float64."""
    from transformers import LlamaConfig, Qwen2Config

    llama, qwen2 = _classes()

    path = str(path)
    raw = read_config(path, revision)
    family = raw.get("model_type")
    for key, wanted in MUST_BE.get(str(family), {}).items():
        if key in raw and raw[key] != wanted:
            raise CheckpointError(
                f"{path}: config.json has {key}={raw[key]!r}; the native class computes {wanted!r} "
                f"only, so its output would be wrong; use the released layout"
            )
    common: dict[str, Any] = dict(dtype=getattr(torch, dtype), revision=revision, output_loading_info=True)
    if family == "llada":
        model, info = llama.from_pretrained(
            path, config=LlamaConfig(**_from_llada(raw)), key_mapping=LLADA_KEYS, **common
        )
    elif family in ("Dream", "qwen2"):
        known = {k: v for k, v in raw.items() if k not in NOT_SHAPE}
        model, info = qwen2.from_pretrained(path, config=Qwen2Config(**known), **common)
    elif family == "llama":
        model, info = llama.from_pretrained(path, **common)
    else:
        raise CheckpointError(
            f"{path}: model_type {family!r} is not supported. Use llada, Dream, or a llama or qwen2 folder that this "
            f"project wrote."
        )
    wrong = {k: sorted(info[k]) for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[k]}
    if model.config.tie_word_embeddings and wrong.get("missing_keys") == ["lm_head.weight"]:
        del wrong["missing_keys"]
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong}; those weights would stay random; check that the folder holds the "
            f"whole {family} checkpoint"
        )
    tokenizer = _tokenizer(path, family, revision)
    shifted = bool(raw.get("logits_shifted", family == "Dream"))
    denoiser = TransformerDenoiser(model.to(device), _mask_id(path, raw, tokenizer), len(tokenizer), shifted)
    probe(denoiser)
    return denoiser, Encoder(tokenizer, _end_ids(tokenizer))


def _classes() -> tuple[Any, Any]:
    """The native classes; untyped, because ``output_loading_info`` changes what from_pretrained returns."""
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    return LlamaForCausalLM, Qwen2ForCausalLM


def _from_llada(raw: dict[str, Any]) -> dict[str, Any]:
    return dict(
        vocab_size=raw.get("embedding_size") or raw["vocab_size"],
        hidden_size=raw["d_model"],
        intermediate_size=raw["mlp_hidden_size"],
        num_hidden_layers=raw["n_layers"],
        num_attention_heads=raw["n_heads"],
        num_key_value_heads=raw.get("n_kv_heads") or raw["n_heads"],
        rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
        max_position_embeddings=raw["max_sequence_length"],
        rope_parameters={"rope_type": "default", "rope_theta": raw.get("rope_theta", 10000.0)},
        tie_word_embeddings=raw.get("weight_tying", False),
        bos_token_id=None,
        eos_token_id=raw.get("eos_token_id"),
        pad_token_id=raw.get("pad_token_id"),
        mask_token_id=raw.get("mask_token_id"),
    )


def _tokenizer(path: str, family: str, revision: str | None) -> Any:
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    # Dream's own tokenizer class is remote code; the native one gives the same ids. Everybody else has a whole
    # tokenizer.json; AutoTokenizer would go by the model's family and put its own splitting into it (Qwen2: no spaces).
    kind = Qwen2Tokenizer if family == "Dream" else PreTrainedTokenizerFast
    try:
        return kind.from_pretrained(path, revision=revision, padding_side="left")  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no tokenizer ({str(error).splitlines()[0]}); no prompt could be encoded; put "
            f"the {family} checkpoint's tokenizer beside its weights"
        ) from error


def _mask_id(path: str, raw: dict[str, Any], tokenizer: Any) -> int:
    if raw.get("mask_token_id") is not None:
        return int(raw["mask_token_id"])
    known = tokenizer.get_vocab()
    for token in MASK_TOKENS:
        if token in known:
            return known[token]
    raise CheckpointError(
        f"{path}: no mask_token_id in config.json and none of {MASK_TOKENS} in the tokenizer; the "
        f"canvas could not be drawn; name the id in config.json"
    )


def _end_ids(tokenizer: Any) -> frozenset[int]:
    known = tokenizer.get_vocab()
    named = {known[t] for t in ("<|eot_id|>", "<|im_end|>", "<|endoftext|>") if t in known}
    return frozenset(named | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()))
