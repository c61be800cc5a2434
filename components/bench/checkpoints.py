"""Checkpoints of random weights in the layouts that the hub has, and rows of a text task: what `gpu-smoke` runs on.

``python -m components.bench.checkpoints data/smoke`` writes ``llada`` and ``dream``, each in shards of safetensors, and
``train.jsonl`` and ``test.jsonl`` in GSM8K's columns. ``--size 8b --device cuda`` makes them as large as the released
models (31 GB). Config keys, weight names, special tokens and their ids are the released ones, the ids moved down where
the vocabulary is small. Every other token is a byte, or a filler that only decodes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..core.files import write_json, write_text
from ..denoisers import Encoder, TransformerDenoiser, llada, vocabulary

MERGES = "#version: 0.2\n"
SHARPNESS = 3.0  # of the head: confidences spread, so that rules commit some positions and not others
LLADA_CHAT = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content']"
    " | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
DREAM_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Layout:
    """special: token -> its place behind ``base``, the first id of a special token."""

    special: Mapping[str, int]
    bos: str
    mask: str
    chat: str

    def ids(self, base: int) -> dict[str, int]:
        return {token: base + place for token, place in self.special.items()}


LAYOUTS = {
    "llada": Layout(
        {
            "<|startoftext|>": 0,
            "<|endoftext|>": 1,
            "<|mdm_mask|>": 256,
            "<|start_header_id|>": 266,
            "<|end_header_id|>": 267,
            "<|eot_id|>": 268,
        },
        "<|startoftext|>",
        "<|mdm_mask|>",
        LLADA_CHAT,
    ),
    "dream": Layout(
        {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<|beginoftext|>": 22, "<|mask|>": 23},
        "<|beginoftext|>",
        "<|mask|>",
        DREAM_CHAT,
    ),
}


@dataclass(frozen=True)
class Shape:
    """kv: heads of keys and values. base: the id of the layout's first special token. positions: the longest row."""

    width: int
    layers: int
    heads: int
    kv: int
    inner: int
    vocabulary: int
    base: int
    positions: int


SHAPES = {
    ("llada", "small"): Shape(64, 2, 2, 2, 128, 640, 256, 1024),
    ("dream", "small"): Shape(64, 2, 2, 1, 128, 320, 256, 1024),
    ("llada", "8b"): Shape(4096, 32, 32, 32, 12_288, 126_464, 126_080, 4096),
    ("dream", "8b"): Shape(3584, 28, 28, 4, 18_944, 152_064, 151_643, 131_072),
}


def config(layout: str, shape: Shape) -> dict[str, Any]:
    """config.json as the hub has it."""
    named, special = LAYOUTS[layout], LAYOUTS[layout].ids(shape.base)
    end = special["<|endoftext|>"]
    ids = {"eos_token_id": end, "pad_token_id": end, "mask_token_id": special[named.mask]}
    return (_llada(shape) if layout == "llada" else _dream(shape, special[named.bos])) | ids


def _llada(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        **llada.MUST_BE,
        "d_model": shape.width,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
        "n_kv_heads": shape.kv,
        "mlp_hidden_size": shape.inner,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "rope_full_precision": True,
        "max_sequence_length": shape.positions,
        "vocab_size": shape.vocabulary,
        "embedding_size": shape.vocabulary,
        "weight_tying": False,
    }


def _dream(shape: Shape, begin: int) -> dict[str, Any]:
    return {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv,
        "intermediate_size": shape.inner,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "max_position_embeddings": shape.positions,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "use_mrope": False,
        "use_sliding_window": False,
        "bos_token_id": begin,
    }


def model(layout: str, shape: Shape, device: str = "cpu", dtype: str = "bfloat16", seed: int = 0) -> Any:
    """The native model with random weights, made on the device in its own type."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    raw = config(layout, shape)
    own = llada.native_config("random", llada.DEFAULTS | raw) if layout == "llada" else raw
    own = {name: value for name, value in own.items() if name not in ("model_type", "architectures")}
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.random.fork_rng(), torch.device(device):  # the classes draw from the global generators
            torch.manual_seed(seed)
            made = LlamaForCausalLM(LlamaConfig(**own)) if layout == "llada" else Qwen2ForCausalLM(Qwen2Config(**own))
            torch.nn.init.normal_(made.lm_head.weight, std=SHARPNESS / shape.width**0.5)
    finally:
        torch.set_default_dtype(before)
    return made.eval().requires_grad_(False)


def tokenizer(layout: str, shape: Shape, folder: Path) -> None:
    """The tokenizer's files: a token for each byte, fillers, and the layout's special tokens at their ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named, special = LAYOUTS[layout], LAYOUTS[layout].ids(shape.base)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"<{place}>" for place in range(len(pieces), max(special.values()) + 1)]
    words = {piece: place for place, piece in enumerate(pieces) if place not in set(special.values())}
    chosen: dict[str, Any] = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": named.bos}
    if layout == "llada":  # which names no mask token
        core = Tokenizer(models.BPE(words | special, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        core.add_special_tokens(list(special))
        made = PreTrainedTokenizerFast(tokenizer_object=core, **chosen)
        made.chat_template = named.chat
        made.save_pretrained(folder)
        return
    write_json(folder / "vocab.json", words)
    write_text(folder / "merges.txt", MERGES)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(number): {"content": token, **plain} for token, number in special.items()}
    chosen |= {"mask_token": named.mask, "unk_token": None, "added_tokens_decoder": added, "chat_template": named.chat}
    write_json(folder / "tokenizer_config.json", chosen | {"tokenizer_class": "DreamTokenizer", "errors": "replace"})


def theirs(name: str) -> str:
    """A native Llama weight's name in LLaDA's files."""
    parts = {
        "model.embed_tokens.": "model.transformer.wte.",
        "model.norm.": "model.transformer.ln_f.",
        "lm_head.": "model.transformer.ff_out.",
        "model.layers.": "model.transformer.blocks.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ff_norm",
        "self_attn.o_proj": "attn_out",
        "self_attn.": "",
        "mlp.gate_proj": "ff_proj",
        "mlp.up_proj": "up_proj",
        "mlp.down_proj": "ff_out",
    }
    for ours, hub in parts.items():
        name = name.replace(ours, hub)
    return name


def write(layout: str, folder: Path, shape: Shape, device: str = "cpu", made: Any = None) -> None:
    """A folder as the hub has it, in bfloat16 and at least two shards; made: the model, where it exists already."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    made = model(layout, shape, device) if made is None else made
    weights: dict[str, torch.Tensor] = made.state_dict()
    size = sum(weight.nbytes for weight in weights.values())
    weights = {theirs(name) if layout == "llada" else name: weight for name, weight in weights.items()}
    save_torch_state_dict(weights, str(folder), max_shard_size=min(size // 2 + 1, 4 * 2**30), force_contiguous=True)
    write_json(folder / "config.json", config(layout, shape))
    tokenizer(layout, shape, folder)


def open_random(layout: str, size: str, device: str, dtype: str) -> tuple[TransformerDenoiser, Encoder]:
    """The denoiser and encoder of a random checkpoint that no file holds but its tokenizer's, for a moment."""
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    shape = SHAPES[layout, size]
    kind: Any = PreTrainedTokenizerFast if layout == "llada" else Qwen2Tokenizer
    with TemporaryDirectory() as folder:
        tokenizer(layout, shape, Path(folder))
        words = kind.from_pretrained(folder, padding_side="left")
    mask, end_ids = LAYOUTS[layout].ids(shape.base)[LAYOUTS[layout].mask], vocabulary.end_ids(words, masked=False)
    made = model(layout, shape, device, dtype)
    denoiser = TransformerDenoiser(made, mask, words.get_vocab().values(), shifted=layout == "dream")
    return denoiser, Encoder(words, end_ids, denoiser.positions, mask)


def rows(count: int, seed: str) -> str:
    """JSON lines of sums in words, each with a solution that ends in '#### number'."""
    source, found = random.Random(seed), dict[str, str]()
    while len(found) < count:
        one, two, three = (source.randint(2, 99) for _ in range(3))
        question = f"Ann has {one} apples and buys {two} bags of {three} apples. How many apples does she have?"
        found[question] = f"{two} bags hold {two * three}. {one} + {two * three} = {one + two * three}.\n#### "
        found[question] += str(one + two * three)
    return "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in found.items())


def main(words: Sequence[str] | None = None) -> None:
    """Write both random checkpoints and the rows that the profile gpu-smoke reads."""
    asked = argparse.ArgumentParser(description=main.__doc__)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--size", choices=sorted({size for _, size in SHAPES}), default="small")
    asked.add_argument("--device", default="cpu", help="where the weights are drawn")
    given = asked.parse_args(words)
    for layout in LAYOUTS:
        write(layout, given.folder / layout, SHAPES[layout, given.size], given.device)
    write_text(given.folder / "train.jsonl", rows(400, "train"))
    write_text(given.folder / "test.jsonl", rows(40, "test"))


if __name__ == "__main__":
    main()
