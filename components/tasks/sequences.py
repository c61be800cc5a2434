"""Digits to sort, from reasoning-gym with its verifier.

Each place of the answer depends on the prompt alone, so this is the easy end: positions may be committed together as
soon as the model knows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import SettingsError
from . import gym
from .example import Example, Score, address, canvas_for, cut, matching


@dataclass(frozen=True, kw_only=True)
class NumberSorting:
    """'N<72940183' asks for the digits in rising order, 'N>...' in falling order.

    The verifier takes any sorted list within 1 of the right one, place by place; a text is correct only if it also is
    the answer. Dense: share of places that agree.
    """

    name: str = "number_sorting"
    marker: str = "N"
    numbers: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.numbers <= 36:
            raise SettingsError(
                f"numbers={self.numbers} digits are to be sorted: one is sorted already and more than 36 make the "
                "canvas long. Use 2 to 36."
            )

    @property
    def canvas_length(self) -> int:
        return canvas_for(self.numbers)

    @property
    def alphabet(self) -> str:
        return self.marker + "<>0123456789"

    def _gym(self):
        n, bounds = self.numbers, {"min_value": 0, "max_value": 9, "min_decimals": 0, "max_decimals": 0}
        return gym.dataset("number_sorting", min_numbers=n, max_numbers=n, **bounds)

    def sample(self, index: int, seed: int) -> Example:
        metadata = self._gym()[address("number_sorting", seed, index)]["metadata"]
        sign = "<" if metadata["direction"] == "ascending" else ">"
        numbers = metadata["original_numbers"], metadata["sorted_numbers"]
        digits, answer = ("".join(str(int(float(number))) for number in row) for row in numbers)
        return Example(self.name, self.marker + sign + digits, answer)

    def score(self, text: str, example: Example) -> Score:
        text = cut(text)
        entry = {
            "answer": str([f"{digit}.0" for digit in example.answer]),
            "metadata": {"direction": "ascending" if example.prompt[1] == "<" else "descending"},
        }
        verdict = self._gym().score_answer(str([f"{digit}.0" for digit in text]), entry)
        return Score(float(verdict == 1.0 and text == example.answer), matching(text, example.answer))
