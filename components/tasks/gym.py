"""The door to reasoning-gym: one cached data set per configuration, addressed by hashed seeds.

reasoning-gym draws item i of seed s from ``Random(s + i)``, so item i of seed s is item i-1 of seed s+1. Here every
data set has seed 0 and items are asked for by a 63-bit address instead of an index: neighbouring seeds share nothing,
and no data set is built per item. The package takes 1 to 2 s to import, hence the lazy import.
"""

from __future__ import annotations

import functools
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
