"""Progress of long work: a bar on a terminal, one line per interval elsewhere (DVC and Prefect pipe the output)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

EVERY_SECONDS = 10.0


@contextmanager
def progress(title: str, total: int, shown: bool = True) -> Generator[Callable[..., None]]:
    """Gives ``tick(note, count=1)``, to be called as units of work are finished."""
    if not shown:
        yield lambda note, count=1: None
        return
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ) as bar:
            job = bar.add_task(title, total=total, note="")
            yield lambda note, count=1: bar.update(job, advance=count, note=note)
        return
    begin = last = time.monotonic()
    done = 0

    def tick(note: str, count: int = 1) -> None:
        nonlocal last, done
        done += count
        now = time.monotonic()
        if now - last >= EVERY_SECONDS or done == total:
            last = now
            print(f"{title} {done}/{total} {now - begin:.0f} s {note}".rstrip(), flush=True)

    yield tick
