"""The table of decoding rules, read by settings, sweep, reports and the command line.

To add a rule, write its class and one entry of ``RULES``. Nothing here imports torch before a rule is built, so that
settings, help texts and reports stay light.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import SettingsError

if TYPE_CHECKING:
    from .protocol import Policy


@dataclass(frozen=True)
class Rule:
    """An entry of the table.

    build       makes it from its one number, or from nothing where it takes none.
    label       its name in tables and pictures.
    number      the meaning of the number; empty where the rule takes none. low, high: its bounds; ``above``: low is
                excluded.
    whole       the number must be whole.
    default     the number where none is given; None: one must be given.
    commits     "fixed": as many positions a step as the number; "several": as many as the state allows; "one":
                one position, drawn from a distribution over many.
    random      it is sampled, so that an evaluation averages over decode seeds.
    decodes     False for training alone: a target of a loss, the teacher.
    reads_pairs it reads pairs of positions, not each one alone.
    blocks      whether a sweep runs it in shorter blocks too: never, in the main "table" only, or always.
    everywhere  it is swept where only the strongest rules are: transfer, out of domain, headroom.
    attends     it reads the frozen dLLM's attention, which a cache does not have.
    """

    build: Callable[..., Policy]
    label: str
    number: str = ""
    low: float = 0.0
    high: float = math.inf
    above: bool = False
    whole: bool = False
    default: float | None = None
    commits: Literal["fixed", "several", "one"] = "several"
    random: bool = False
    decodes: bool = True
    reads_pairs: bool = False
    blocks: Literal["never", "table", "always"] = "never"
    everywhere: bool = False
    attends: bool = False

    @property
    def range(self) -> str:
        """``a number from 0 to 1``, ``a whole number of at least 1``, ``no number``."""
        if not self.number:
            return "no number"
        kind = "a whole number" if self.whole else "a number"
        if self.high < math.inf:
            return f"{kind} {'above' if self.above else 'from'} {self.low:g} {'up ' * self.above}to {self.high:g}"
        return f"{kind} {'above' if self.above else 'of at least'} {self.low:g}"

    def admits(self, value: float) -> bool:
        inside = self.low < value < math.inf if self.above else self.low <= value < math.inf
        return inside and value <= self.high and (not self.whole or value == int(value))


def _lazy(path: str, *given: Any, **fixed: Any) -> Callable[..., Policy]:
    """``module.Class`` of this folder, imported when a rule is built; ``given`` stand before its number."""
    module, name = path.split(".")

    def build(*number: Any) -> Policy:
        made = getattr(import_module(f"{__package__}.{module}"), name)
        return partial(made, *given, **fixed)(*number)

    return build


_PER_STEP: dict[str, Any] = {
    "number": "positions per forward pass",
    "low": 1,
    "whole": True,
    "default": 1,
    "commits": "fixed",
}

# In this order rules are swept and listed.
RULES: dict[str, Rule] = {
    "threshold": Rule(
        _lazy("heuristics.Threshold"), "confidence threshold", "confidence", high=1, blocks="always", everywhere=True
    ),
    "factor": Rule(_lazy("heuristics.Factor"), "factor rule", "factor", above=True, blocks="table", everywhere=True),
    "entropy_bound": Rule(
        _lazy("heuristics.EntropyBound"), "entropy bound", "gamma in nats", blocks="table", everywhere=True
    ),
    "random": Rule(_lazy("heuristics.Quota", "random"), "random order", random=True, **_PER_STEP),
    "left_to_right": Rule(_lazy("heuristics.Quota", "left_to_right"), "left to right", **_PER_STEP),
    "confidence": Rule(_lazy("heuristics.Quota", "confidence"), "max confidence", everywhere=True, **_PER_STEP),
    "margin": Rule(_lazy("heuristics.Quota", "margin"), "margin", **_PER_STEP),
    "entropy": Rule(_lazy("heuristics.Quota", "entropy"), "min entropy", **_PER_STEP),
    "klass": Rule(_lazy("heuristics.Klass", kl=0.01), "KLASS", "confidence", high=1),
    "softmax_confidence": Rule(
        _lazy("heuristics.SoftmaxConfidence"), "softmax confidence", "tau", above=True, commits="one", random=True
    ),
    "top_k_random": Rule(
        _lazy("heuristics.TopKRandom"),
        "random of the top k",
        "positions to draw among",
        low=1,
        whole=True,
        commits="one",
        random=True,
    ),
    "mean_field": Rule(_lazy("dependence.MeanField"), "mean field", "tau", high=1, reads_pairs=True, everywhere=True),
    "overlap": Rule(
        _lazy("dependence.Overlap"), "overlap, joint risk", "gamma in nats", reads_pairs=True, everywhere=True
    ),
    "overlap_rise": Rule(
        _lazy("dependence.Overlap", share=0.0),
        "overlap, rise of the risk",
        "gamma in nats",
        reads_pairs=True,
        everywhere=True,
    ),
    "spread": Rule(_lazy("dependence.Spread"), "spread apart", "gamma in nats", reads_pairs=True),
    "adas": Rule(
        _lazy("dependence.Adas"), "ADAS", "confidence", high=1, reads_pairs=True, everywhere=True, attends=True
    ),
    "dapd": Rule(_lazy("dependence.Dapd"), "DAPD", "largest attention that is no edge", reads_pairs=True, attends=True),
    "max_confidence": Rule(
        _lazy("heuristics.MaxConfidence"), "max confidence, ties split", commits="one", random=True, decodes=False
    ),
    "teacher": Rule(_lazy("teacher.Teacher"), "teacher", decodes=False),
}

PAIR_ROWS: dict[str, Rule] = {
    "mi_bound": Rule(_lazy("variants.mi_bound"), "mutual-information bound on learned shifts", "gamma in nats"),
    "demask": Rule(_lazy("variants.demask"), "bounded dependence on learned shifts", "gamma"),
    "shuffled": Rule(_lazy("variants.shuffled"), "control: shuffled shifts", "offset"),
    "distance": Rule(_lazy("variants.distance"), "control: distance", "offset"),
    "graph": Rule(_lazy("variants.graph"), "control: constraint graph", "offset"),
    "negative": Rule(_lazy("variants.negative"), "control: negative shifts alone", "offset"),
    "positive": Rule(_lazy("variants.positive"), "control: positive shifts alone", "offset"),
}
"""Rules and controls over the pair shifts of the trained policy, built by ``variants.variant``."""

POLICIES = {"learned": "learned policy", "distilled": "distilled start", "influence": "influence alone"} | {
    name: row.label for name, row in PAIR_ROWS.items()
}
"""Families that need a trained policy, with their labels. Every other family is a rule, a point of the front."""


def label_of(family: str) -> str:
    """The family's name in tables and pictures."""
    return RULES[family].label if family in RULES else POLICIES.get(family, family.replace("_", " "))


def decoders() -> dict[str, Rule]:
    """The rules that a decode can use."""
    return {name: rule for name, rule in RULES.items() if rule.decodes}


def is_random(family: str) -> bool:
    """True for the family of a rule that must be sampled. A learned policy's family is no rule."""
    return family in RULES and RULES[family].random


def known(name: str) -> str:
    """The name of a rule; SettingsError names the nearest one."""
    if name not in RULES:
        close = difflib.get_close_matches(name, RULES, 1)
        near = f" (did you mean {close[0]}?)" if close else ""
        raise SettingsError(f"{name!r} is no rule{near}. Use one of {', '.join(RULES)}.")
    return name


def check_number(name: str, value: float | None, written: str) -> None:
    """Raise SettingsError unless the rule takes the number, or None where it has a default. written: by the user."""
    rule = RULES[known(name)]
    if value is None and (rule.default is not None or not rule.number):
        return
    if not rule.number:
        raise SettingsError(f"{written}: {name} takes no number. Write null.")
    if value is None or not rule.admits(value):
        raise SettingsError(f"{written}: {name} takes {rule.range} ({rule.number}). Give one.")


def heuristic(name: str, value: float | None = None) -> Any:
    """A rule by its name and its number, as settings and the command line write it."""
    check_number(name, value, name if value is None else f"{name}:{value:g}")
    rule, number = RULES[name], RULES[name].default if value is None else value
    if number is None:
        return rule.build()
    return rule.build(int(number) if rule.whole else float(number))
