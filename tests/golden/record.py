"""Record the golden run's figures again: ``python -m tests.golden.record "why the figures changed"``.

The reason is kept with the date and the commit, so that every change of the figures has its sentence.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.golden import pipeline

STORED = Path(__file__).with_name("golden.json")
PACKAGES = ("torch", "transformers", "numpy", "reasoning-gym", "onnxruntime")
WORDS = 4  # of a reason, at least


def environment() -> dict[str, str]:
    """What the last digits of a figure depend on, beside the code."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    """Name, family and model, because a rented machine may hide the full name."""
    wanted = ("model name", "cpu family", "model")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        found.setdefault(name.strip(), value.strip())
    return ", ".join(found[name] for name in wanted if name in found) or platform.processor()


def stored() -> dict[str, Any]:
    return json.loads(STORED.read_text(encoding="utf-8"))


def record(reason: str, figures: dict[str, Any], path: Path = STORED) -> None:
    """Write the figures and append the reason; ValueError for a reason of a word or two."""
    if len(reason.split()) < WORDS:
        raise ValueError(f"reason={reason!r} is no sentence. Write why the figures changed, in {WORDS} words or more.")
    history = json.loads(path.read_text(encoding="utf-8"))["history"] if path.exists() else []
    history.append({"date": date.today().isoformat(), "commit": _commit(), "reason": reason})
    whole = {"history": history, "environment": environment(), "figures": figures}
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _commit() -> str:
    """The commit whose code was run; changes that are not committed show."""
    words = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude", "*"]
    done = subprocess.run(words, cwd=pipeline.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    reason = " ".join(sys.argv[1:])
    if len(reason.split()) < WORDS:  # asked before the minute of work
        sys.exit('Usage: python -m tests.golden.record "why the figures changed". A sentence is needed.')
    with tempfile.TemporaryDirectory() as folder:
        record(reason, pipeline.figures(Path(folder)))


if __name__ == "__main__":
    main()
