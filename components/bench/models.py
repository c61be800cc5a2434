"""A random dLLM of a given size and prompts for it, for benchmarks that need no checkpoint and no data."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import torch

from ..decode.prompts import Prompts
from ..denoisers import Encoder, TransformerDenoiser, embedded
from ..tasks.example import Example, Score, address

SHARPNESS = 16.0  # of 64 positions the threshold rule (.9) decodes about two a step, the entropy bound (1) about three
PROMPT = 32


@dataclass(frozen=True)
class Coin:
    """Prompts of 16 to 32 random characters; a text is right if its hash is even, so that members of a group differ in
    reward, as they do while a policy learns."""

    canvas_length: int
    alphabet: str
    name: str = "coin"

    def sample(self, index: int, seed: int) -> Example:
        source = random.Random(address(self.name, seed, index))
        return Example(self.name, "".join(source.choices(self.alphabet, k=source.randint(PROMPT // 2, PROMPT))), "")

    def score(self, text: str, example: Example) -> Score:
        right = float(address(text) % 2 == 0)
        return Score(right, right)


def random_model(
    length: int, width: int = 128, layers: int = 4, vocabulary: int = 68, dtype: str = "float32"
) -> tuple[TransformerDenoiser, Encoder, Coin]:
    """The denoiser, its encoder, and a task with canvases of ``length`` that is written in its characters.

    One token per character; the head is scaled up, so that it is sure of some positions and unsure of others, as a
    trained one is.
    """
    special = len(embedded.SPECIAL)
    points = (point for point in itertools.count(33) if not 0xD800 <= point < 0xE000)  # surrogates are no characters
    alphabet = "".join(map(chr, itertools.islice(points, vocabulary - special)))
    shape = embedded.Shape(width, layers, max(1, width // 32), 4 * width, length + PROMPT + special)
    denoiser, encoder = embedded.build("llada", alphabet, shape, 0)
    denoiser.model.lm_head.weight.data *= SHARPNESS
    denoiser.model.to(getattr(torch, dtype))
    return denoiser, encoder, Coin(length, alphabet)


def random_prompts(task: Coin, encoder: Encoder, count: int) -> Prompts:
    return Prompts.of(task, [task.sample(index, 0) for index in range(count)], encoder)
