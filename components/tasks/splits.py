"""Which prompt belongs to which split, and drawing so many distinct prompts of one.

The split is a function of the canonical prompt alone, by fixed shares of its hash: the same puzzle falls into the same
split under every seed, knob and run, so splits drawn at different times stay disjoint. Where puzzles are slow to make,
the hash is that of the prompt's one solution, which is known before. Answers may repeat across splits (there are only
288 full 4x4 grids): ``answers_seen`` says how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from ..core.errors import DataError, SettingsError
from .example import Example, Task, address

SPLITS = ("pretrain", "train", "tune", "gate", "test")
SHARES = {"pretrain": 0.70, "train": 0.15, "tune": 0.05, "gate": 0.05, "test": 0.05}
TRAIN_FILE_SHARES = {"train": 0.90, "tune": 0.05, "gate": 0.05}  # of a data set that brings its own test file


@runtime_checkable
class Finite(Protocol):
    """A task whose prompts are given, not generated."""

    def examples(self, split: str) -> list[Example]: ...


@runtime_checkable
class Ahead(Protocol):
    """A task that may know what decides the split of an example before it makes it; None if it does not."""

    def split_by(self, index: int, seed: int) -> str | None: ...


def pick(uid: str, shares: Mapping[str, float]) -> str:
    """The split of an example's uid, by shares that add up to 1."""
    place, total = int(uid, 16) / 16 ** len(uid), 0.0
    for split, share in shares.items():
        total += share
        if place < total:
            return split
    return list(shares)[-1]  # the shares' sum may fall short of 1 by rounding


def split_of(example: Example) -> str:
    """The split of a generated example, by its uid, or by ``metadata["split_by"]`` where it brings that."""
    decided = example.metadata.get("split_by")
    return _hashed(decided) if decided is not None else pick(example.uid, SHARES)


def _hashed(decided: str) -> str:
    return pick(Example("", decided, "").uid, SHARES)


def collect_all(task: Task, counts: Mapping[str, int], seed: int) -> dict[str, list[Example]]:
    """For each split so many examples with distinct prompts, in one pass over ``task.sample(0, 1, 2, ..., seed)``.

    What one split gets depends on its own count only: asking for fewer gives a prefix, asking for other splits changes
    nothing. A finite task gives its own splits, in an order drawn from the seed.

    Raises:
        SettingsError: an unknown split.
        DataError: the task has not that many prompts, or gave too few of them in ten times the draws that should do.
    """
    for split in counts:
        if split not in SPLITS:
            raise SettingsError(f"{split!r} is no split. Use one of {', '.join(SPLITS)}.")
    if isinstance(task, Finite):
        return {split: _shuffled(task, split, count, seed) for split, count in counts.items()}

    found: dict[str, dict[str, Example]] = {split: {} for split in counts}
    missing = {split for split, count in counts.items() if count > 0}
    budget = 1000 + 10 * int(max((count / SHARES[split] for split, count in counts.items()), default=0))
    ahead = task if isinstance(task, Ahead) else None
    index = 0
    while missing:
        if index == budget:
            split = min(missing)
            raise DataError(
                f"task {task.name} gave {len(found[split])} distinct prompts of split {split!r} in {budget} draws, "
                f"not the {counts[split]} that were asked for. Ask for fewer, or widen the task's settings."
            )
        decided = ahead.split_by(index, seed) if ahead is not None else None
        index += 1
        if decided is not None and _hashed(decided) not in missing:
            continue
        example = task.sample(index - 1, seed)
        split = split_of(example)
        if split in missing:
            found[split].setdefault(example.uid, example)
            if len(found[split]) == counts[split]:
                missing.remove(split)
    return {split: list(examples.values()) for split, examples in found.items()}


def _shuffled(task: Finite, split: str, count: int, seed: int) -> list[Example]:
    examples = sorted(task.examples(split), key=lambda example: address("order", seed, example.uid))
    if len(examples) < count:
        raise DataError(
            f"{count} examples of split {split!r} were asked for, the data set has {len(examples)}. "
            "Ask for fewer, or use another split."
        )
    return examples[:count]


def answers_seen(test: Iterable[Example], pretrain: Iterable[Example]) -> float:
    """Share of the test examples whose answer is also that of some pretraining example (of another prompt)."""
    seen = {example.answer for example in pretrain}
    hits = [example.answer in seen for example in test]
    return sum(hits) / max(len(hits), 1)
