"""Prompts to ids and ids to text, through the checkpoint's own tokenizer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError


class _UnknownToken(Exception):
    """The vocabulary has no token for a part of a text, and none for what is unknown."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with its chat template, as tasks use it.

    end_ids    ids that end a text.
    positions  the longest sequence (prompt and canvas) that the dLLM takes; None: no limit.
    mask_id    the id of a masked position, which text must never become.
    stop_ids   ids at which the decoding of a row stops, the first of them fills what is behind; empty: at none.
    """

    tokenizer: Any
    end_ids: frozenset[int]
    positions: int | None = None
    mask_id: int | None = None
    stop_ids: tuple[int, ...] = ()

    def stopping(self) -> Encoder:
        """The encoder for rows that stop at the end of their text. DataError if the tokenizer names no end token."""
        end = self._end("a text that stops")
        return replace(self, stop_ids=(end, *sorted(self.end_ids - {end})))

    def prompt(self, text: str) -> Tensor:
        """int64 (length,): the chat with one user message, up to where the assistant begins; the plain text where the
        tokenizer has no chat template. DataError if a part of the text would become a control token, or has no id."""
        ids = self._prompt_ids(text)
        more = Counter(i for i in ids if i in self._control_ids) - self._empty_prompt
        if more:
            names = [self.tokenizer.convert_ids_to_tokens(i) for i in more]
            raise DataError(
                f"the prompt {_short(text)} contains {names}, control tokens of this dLLM. Remove them, or write them "
                f"in other characters."
            )
        if self.tokenizer.chat_template is None and ids and ids[-1] in self._control_ids & self.end_ids:
            del ids[-1]  # the canvas goes on where the text stops: no end may stand between them
        return torch.tensor(ids, dtype=torch.int64)

    def canvas(self, text: str, marker: str) -> Tensor:
        """int64 (length,): a text with gaps, -1 where ``marker`` or the model's own mask stands. Ends of the text may
        be written in it. DataError if there is no gap, or if a part would become another control token."""
        mask = None if self.mask_id is None else self.tokenizer.convert_ids_to_tokens(self.mask_id)
        ids = self._ids(text.replace(marker, mask or marker), text)
        gaps = ids.count(-1 if self.mask_id is None else self.mask_id)
        if not gaps or gaps < text.count(marker):
            raise DataError(
                f"the canvas {_short(text)} has {gaps} masks for this tokenizer. Write {marker} for a gap, and use a "
                f"tokenizer with a mask token."
            )
        if other := set(ids) & self._control_ids - self.end_ids - {self.mask_id}:
            names = self.tokenizer.convert_ids_to_tokens(sorted(other))
            raise DataError(f"the canvas {_short(text)} contains {names}, control tokens of this dLLM. Remove them.")
        return torch.tensor([-1 if i == self.mask_id else i for i in ids], dtype=torch.int64)

    def plain(self, text: str) -> Tensor:
        """int64 (length,): the text alone. DataError if a character has no id."""
        return torch.tensor(self._ids(text, text), dtype=torch.int64)

    def _prompt_ids(self, text: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            return self._ids(text, text, special=True)
        return self._ids(self._chat(text), text)

    def _chat(self, text: str) -> str:
        """The text as the chat template writes it. DataError where the template fails, or leaves the text out."""
        try:
            chat = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template is a program of somebody else's
            what = " ".join(str(error).split())
            raise DataError(
                f"this dLLM's chat template fails ({type(error).__name__}: {what}). Download the checkpoint again, or "
                f"run `dvc repro pretrain`."
            ) from error
        if text.strip() not in chat:
            raise DataError(
                f"this dLLM's chat template leaves the question {_short(text)} out. Download the checkpoint again, or "
                f"run `dvc repro pretrain`."
            )
        return chat

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        mask = () if self.mask_id is None else (self.mask_id,)
        return frozenset(added.union(self.tokenizer.all_special_ids, mask))

    @cached_property
    def _empty_prompt(self) -> Counter[int]:
        """The control tokens that the template itself writes."""
        return Counter(self._prompt_ids(""))

    def _ids(self, text: str, said: str, special: bool = False) -> list[int]:
        """The ids of ``text``. DataError that names the characters of ``said`` without any."""
        try:
            return self._tokenized(text, special)
        except _UnknownToken as error:
            unknown = [c for c in dict.fromkeys(said) if not self._has_id(c)]
            raise DataError(
                f"{_short(said)}: this dLLM's vocabulary has no token for {unknown or 'a part of its chat template'}. "
                f"Use characters that it was trained on, or another dLLM."
            ) from error

    def _has_id(self, text: str) -> bool:
        try:
            return bool(self._tokenized(text))
        except _UnknownToken:
            return False

    def _tokenized(self, text: str, special: bool = False) -> list[int]:
        try:
            return self.tokenizer(text, add_special_tokens=special)["input_ids"]
        except Exception as error:
            if type(error) is not Exception:  # the tokenizers library raises the bare class
                raise
            raise _UnknownToken(str(error)) from error

    def answer(self, text: str, length: int) -> Tensor:
        """int64 (length,): the answer, then the end token up to the canvas length. DataError if it does not fit, or if
        there is no end token to fill the canvas with."""
        ids = self._ids(text, text)
        if len(ids) > length:
            raise DataError(
                f"the answer {text!r} takes {len(ids)} tokens, the canvas has {length}. Give the task a longer canvas."
            )
        if len(ids) < length:
            end = self._end(f"the answer {_short(text)}, which fills {len(ids)} of {length} positions")
            ids = ids + [end] * (length - len(ids))
        return torch.tensor(ids, dtype=torch.int64)

    def _end(self, what: str) -> int:
        """The id that fills a canvas behind its text. DataError, for ``what``, if the tokenizer names none."""
        end = self.tokenizer.eos_token_id
        end = min(self.end_ids, default=None) if end is None else end
        if end is None:
            raise DataError(f"The tokenizer names no end token for {what}. Set eos_token in tokenizer_config.json.")
        return end

    def check_length(self, text: str, prompt: int, canvas: int) -> None:
        """DataError if a prompt of so many tokens and its canvas are longer than what the dLLM takes."""
        if self.positions is not None and prompt + canvas > self.positions:
            raise DataError(
                f"the prompt {_short(text)} of {prompt} tokens and a canvas of {canvas} are longer than this dLLM's "
                f"{self.positions} positions (max_position_embeddings). Use a shorter prompt or canvas."
            )

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


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
