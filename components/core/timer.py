"""Where the time of a decode job or a training iteration goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager


class Timer:
    """Seconds by section; sections do not nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def fresh(self) -> Timer:
        """One of the same kind that has measured nothing."""
        return type(self)()

    @contextmanager
    def __call__(self, section: str) -> Generator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[section] += time.perf_counter() - begin
