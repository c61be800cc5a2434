"""The door to reasoning-gym: one cached data set per configuration, addressed by hashed seeds.

reasoning-gym draws item i of seed s from ``Random(s + i)``, so item i of seed s is item i-1 of seed s+1. Here every
data set has seed 0 and items are asked for by a 63-bit address instead of an index: neighbouring seeds share nothing,
and no data set is built per item. The package takes 1 to 2 s to import, hence the lazy import.
"""

from __future__ import annotations

import functools
import random
from importlib import import_module
from typing import Any

from ..core.errors import SettingsError


@functools.cache
def dataset(name: str, **config: Any) -> Any:
    """The reasoning-gym data set ``name``; index it with ``example.address(...)``.

    Raises:
        SettingsError: reasoning-gym refuses the configuration.
    """
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, seed=0, size=1, **config)
    except AssertionError as error:
        raise SettingsError(f"reasoning-gym refuses {config} for {name} ({error}). Change these settings.") from error


ZEBRA_KINDS = (  # of values besides names, in reasoning-gym's order
    "Color",
    "Nationality",
    "Animal",
    "Drink",
    "Cigar",
    "Food",
    "Flower",
    "PhoneModel",
    "Children",
    "Smoothie",
)


def zebra_solution(item: int, people: int, characteristics: int) -> dict[str, int]:
    """The house of each value ('Name.alice') in zebra puzzle ``item``. reasoning-gym draws it first; the clues, which
    take it a thousand times as long, have no other solution."""
    source: Any = import_module("reasoning_gym.logic.contrib.logic_puzzle.generate")
    rng, kinds = random.Random(item), [getattr(source, kind) for kind in ZEBRA_KINDS]
    rng.shuffle(kinds)
    found = source.generate_solution_dict(rng, [source.Name, *kinds[: characteristics - 1]], people)
    return {str(value): house for value, house in found.items()}
