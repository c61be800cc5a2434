"""A toy domain whose best order is known, for tests of training: no tokenizer, no files, decoded in microseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from components.core.types import Canvas
from components.decode.prompts import Prompts
from components.denoisers.encoder import Encoder
from components.denoisers.formula import FormulaDenoiser
from components.tasks.example import Example, Score, matching

WORDS = 16  # 0 is the mask, 1 to 15 the letters a to o


class Letters:
    """Ids of letters and back; what an ``Encoder`` does."""

    end_ids: frozenset[int] = frozenset()
    stop_ids: tuple[int, ...] = ()

    def check_length(self, text: str, prompt: int, canvas: int) -> None: ...

    def prompt(self, text: str) -> Tensor:
        return torch.tensor([ord(c) - 96 for c in text])

    def answer(self, text: str, length: int) -> Tensor:
        assert len(text) == length
        return self.prompt(text)

    def text(self, ids: Tensor) -> str:
        return "".join(chr(96 + i) if i > 0 else "?" for i in ids.tolist())


@dataclass(frozen=True)
class KeyFirst:
    """A prompt of two letters: the first names the key's position, the second only moves confidences. Every position
    but the key is predicted wrong, and with more confidence than the key, until the key is committed; then everything
    is right and certain. The best order is therefore: the key alone, then all the rest; most confident first is wrong.
    """

    canvas_length: int = 4
    name: str = "key_first"
    alphabet: str = "abcdefghijklmno"

    def sample(self, index: int, seed: int) -> Example:
        key, shade = index % self.canvas_length, index // self.canvas_length
        prompt = chr(97 + key) + chr(97 + shade)
        return Example(self.name, prompt, "".join(chr(97 + key + i) for i in range(self.canvas_length)))

    def score(self, text: str, example: Example) -> Score:
        return Score(float(text == example.answer), matching(text, example.answer))

    def denoiser(self) -> FormulaDenoiser:
        length = self.canvas_length
        place_L = torch.arange(length)

        def formula(canvas: Canvas) -> Tensor:
            key_B, shade_B = (canvas.ids_BT[:, canvas.start - 2 + i] - 1 for i in range(2))
            key_BL = place_L == key_B[:, None]
            found_B1 = (canvas.ids_BT[:, canvas.start :] != 0).gather(1, key_B[:, None])
            right_BL = 1 + key_B[:, None] + place_L
            wrong_BL = torch.where(key_BL | found_B1, right_BL, right_BL % (WORDS - 1) + 1)
            doubtful_BL = torch.where(key_BL, 2.5, 4.5 + 0.3 * ((place_L + shade_B[:, None]) % 3))
            height_BL = torch.where(found_B1, 9.0, doubtful_BL)
            return torch.nn.functional.one_hot(wrong_BL, WORDS) * height_BL.unsqueeze(-1)

        return FormulaDenoiser(formula, WORDS)

    def prompts(self, shades: int = 3) -> Prompts:
        examples = [self.sample(i, 0) for i in range(shades * self.canvas_length)]
        return Prompts.of(cast(Any, self), examples, cast(Encoder, Letters()))


@dataclass(frozen=True)
class ManyTexts:
    """A denoiser whose tokens depend on the order, so that orders write many texts; some of them are right."""

    right: frozenset[str] = frozenset()
    canvas_length: int = 4
    name: str = "many_texts"
    alphabet: str = "abc"

    def denoiser(self) -> FormulaDenoiser:
        source = torch.Generator().manual_seed(0)
        first = 2 * torch.randn(self.canvas_length * WORDS, 24, generator=source)
        second = 0.7 * torch.randn(24, self.canvas_length * WORDS, generator=source)

        def formula(canvas: Canvas) -> Tensor:
            seen = torch.nn.functional.one_hot(canvas.ids_BT[:, canvas.start :], WORDS).float().flatten(1)
            return (torch.tanh(seen @ first) @ second).unflatten(1, (self.canvas_length, WORDS))

        return FormulaDenoiser(formula, WORDS)

    def score(self, text: str, example: Example) -> Score:
        return Score(float(text in self.right), float(text in self.right))

    def sample(self, index: int, seed: int) -> Example:
        return Example(self.name, "a", "a" * self.canvas_length)

    def prompts(self) -> Prompts:
        return Prompts.of(cast(Any, self), [self.sample(0, 0)], cast(Encoder, Letters()))
