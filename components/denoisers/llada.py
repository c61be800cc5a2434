"""LLaDA's own layout as a native Llama: config keys, weight names, and the rotation in float32.

A key that config.json leaves out means what it means in the authors' code (``DEFAULTS``), which is another architecture
than the released one: LayerNorm, sequential blocks, no rotary positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError

# One group each: replacements with a second group are not expanded by transformers 5.
KEYS = {
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

DEFAULTS: dict[str, Any] = {
    "d_model": 768,
    "n_heads": 12,
    "n_kv_heads": None,
    "n_layers": 12,
    "mlp_ratio": 4,
    "mlp_hidden_size": None,
    "activation_type": "swiglu",
    "block_type": "sequential",
    "block_group_size": 1,
    "alibi": False,
    "rope": False,
    "rope_full_precision": True,
    "rope_theta": 10000.0,
    "multi_query_attention": None,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "layer_norm_type": "default",
    "layer_norm_with_affine": True,
    "rms_norm_eps": 1e-5,
    "bias_for_layer_norm": None,
    "include_bias": False,
    "include_qkv_bias": False,
    "scale_logits": False,
    "max_sequence_length": 1024,
    "vocab_size": 50257,
    "embedding_size": 50304,
    "weight_tying": True,
}

# What the native class computes, whatever the config says.
MUST_BE: dict[str, Any] = {
    "block_type": "llama",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "bias_for_layer_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "activation_type": "silu",
    "scale_logits": False,
    "input_emb_norm": False,
    "attention_layer_norm": False,
    "block_group_size": 1,
}

ATTENTION = "sdpa_of_value_dtype"


def native_config(path: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of LlamaConfig; ``raw``: config.json with the authors' defaults where it names no value."""
    heads, hidden = raw["n_heads"], raw["mlp_hidden_size"]
    return dict(
        vocab_size=raw["vocab_size"] if raw["embedding_size"] is None else raw["embedding_size"],
        hidden_size=raw["d_model"],
        intermediate_size=raw["mlp_ratio"] * raw["d_model"] if hidden is None else hidden,
        num_hidden_layers=raw["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(path, raw),
        rms_norm_eps=raw["rms_norm_eps"],
        max_position_embeddings=raw["max_sequence_length"],
        rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
        tie_word_embeddings=raw["weight_tying"],
        bos_token_id=None,
        eos_token_id=raw.get("eos_token_id"),
        pad_token_id=raw.get("pad_token_id"),
        mask_token_id=raw.get("mask_token_id"),
    )


def _key_value_heads(path: str, raw: dict[str, Any]) -> int:
    given, one = raw["n_kv_heads"], raw["multi_query_attention"]
    if given is None:
        return 1 if one else raw["n_heads"]
    if one is not None and bool(one) != (given == 1):
        raise CheckpointError(
            f"{path}: config.json has n_kv_heads={given} and multi_query_attention={one}, which contradict each other. "
            f"Leave one out."
        )
    return given


def rotate_in_float32(model: Any) -> None:
    """Apply the rotary positions in float32 whatever the weights' type (``rope_full_precision``), as the authors do.

    The native class multiplies by cosines that it has rounded to the hidden states' type. With cosines in float32 the
    products are float32 too, and attention casts them back to the values' type.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:
        return sdpa_attention_forward(module, query.to(value.dtype), key.to(value.dtype), value, mask, **more)

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    model.model.rotary_emb.register_forward_pre_hook(_in_float32, with_kwargs=True)


def _in_float32(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first argument gives the cosines their type and device, and nothing else."""
    states, *rest = args
    return (torch.empty(0, device=states.device), *rest), kwargs
