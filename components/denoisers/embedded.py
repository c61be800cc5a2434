"""The embedded dLLMs: small bidirectional transformers saved as ordinary Hugging Face checkpoints.

Nothing here is special to the decode loop: what is saved is loaded back by ``loading.load`` like any hub model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .encoder import Encoder
from .transformer import TransformerDenoiser

SPECIAL = ("<|mask|>", "<|endoftext|>", "<|user|>", "<|assistant|>")
CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Of the transformer. inner: the width of its feed-forward layers. positions: the most tokens of a row."""

    width: int
    layers: int
    heads: int
    inner: int
    positions: int


def tokenizer(alphabet: str) -> Any:
    """A tokenizer with one token per character of ``alphabet``, the special tokens first, and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(set(alphabet))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        mask_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        additional_special_tokens=list(SPECIAL[2:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = CHAT
    return made


def build(layout: str, alphabet: str, shape: Shape, seed: int) -> tuple[TransformerDenoiser, Encoder]:
    """A freshly initialised dLLM. layout: "llada" (native Llama, aligned) or "dream" (native Qwen2, shifted)."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    words = tokenizer(alphabet)
    config: dict[str, Any] = dict(
        vocab_size=len(words),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        mask_token_id=words.mask_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        logits_shifted=layout == "dream",
        # Measured on 4x4 sudoku, loss after 200 steps: std .02 and theta 10000 .76, .06 .54, .06 and theta 100 .52.
        initializer_range=0.06,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    with torch.random.fork_rng(devices=[]):  # the classes draw from the global generator
        torch.manual_seed(seed)
        kind = {
            "llada": lambda: LlamaForCausalLM(LlamaConfig(**config)),
            "dream": lambda: Qwen2ForCausalLM(Qwen2Config(**config)),
        }
        model = kind[layout]()
    denoiser = TransformerDenoiser(model, words.mask_token_id, range(len(words)), layout == "dream")
    return denoiser, Encoder(words, frozenset({words.eos_token_id}), shape.positions, words.mask_token_id)


def save(denoiser: TransformerDenoiser, encoder: Encoder, folder: Path) -> None:
    """An ordinary Hugging Face folder: config.json, model.safetensors, tokenizer files with the chat template."""
    denoiser.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
