"""What the ids of a checkpoint's vocabulary are: known tokens, the mask, the ends of a text."""

from __future__ import annotations

import re
from typing import Any

from ..core.errors import CheckpointError

MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>")
END_TOKENS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>")
CONTROL = re.compile(r"<\|[^<>|\s]+\|>")


def known_ids(path: str, tokenizer: Any, vocabulary: int) -> frozenset[int]:
    """The ids that the tokenizer can decode; a vocabulary may have holes. CheckpointError if one has no embedding."""
    known = frozenset(tokenizer.get_vocab().values())
    if max(known, default=0) >= vocabulary:
        raise CheckpointError(
            f"{path}: the tokenizer has ids up to {max(known)}, the model embeds {vocabulary}. Put the checkpoint's "
            f"own tokenizer beside its weights."
        )
    return known


def mask_id(path: str, raw: dict[str, Any], tokenizer: Any, vocabulary: int, end_ids: frozenset[int]) -> int:
    """The id of a masked position: config.json's, the tokenizer's, or that of a token by its usual name."""
    words, given, own = tokenizer.get_vocab(), raw.get("mask_token_id"), tokenizer.mask_token_id
    named = [words[t] for t in MASK_TOKENS if t in words]
    candidates = [i for i in (given, own, *named) if i is not None]
    if not candidates:
        raise CheckpointError(
            f"{path}: no mask_token_id in config.json and none of {MASK_TOKENS} in the tokenizer. "
            f"Name the id in config.json."
        )
    mask_id = candidates[0]
    hint = (
        f" The tokenizer's mask token has the id {own if own is not None else named[0]}." if len(candidates) > 1 else ""
    )
    if not isinstance(mask_id, int) or isinstance(mask_id, bool) or not 0 <= mask_id < vocabulary:
        raise CheckpointError(
            f"{path}: mask_token_id={mask_id!r} is no id below {vocabulary}.{hint} Name the mask's id."
        )
    if mask_id in end_ids:
        raise CheckpointError(
            f"{path}: mask_token_id={mask_id} is an end token, so that a canvas of masks reads as an empty text.{hint} "
            f"Name the mask's id in config.json."
        )
    if own is not None and own != mask_id:
        raise CheckpointError(
            f"{path}: config.json has mask_token_id={mask_id}, the tokenizer's mask token has the id {own}. Make them "
            f"agree."
        )
    return mask_id


def end_ids(tokenizer: Any, masked: bool) -> frozenset[int]:
    """The ids that end a text; of a masked language model its separator too."""
    known = tokenizer.get_vocab()
    named = {known[t] for t in END_TOKENS if t in known}
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id if masked else None}
    return frozenset(named | (ends - {None}))


def is_foreign(tokenizer: Any) -> bool:
    """Whether the chat template writes control tokens that the vocabulary lacks, as LLaDA-8B-Base's does: they would be
    read as letters. A base model continues plain text."""
    if tokenizer.chat_template is None:
        return False
    try:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False
        )
    except Exception:  # a damaged template is named when a prompt is asked for
        return False
    return not set(CONTROL.findall(chat)) <= tokenizer.get_vocab().keys()
