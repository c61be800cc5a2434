"""A copy of this repository with the default profile at minute size, for tests that run DVC for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SWEPT = {"threshold": 0.9, "factor": 0.8, "entropy_bound": 0.3} | dict.fromkeys(
    ("random", "left_to_right", "confidence", "margin", "entropy"), 1
)
ITERATIONS, SAVED = 6, 1  # iterations of the training; those that a checkpoint comes after, counted from 0


def shrink(params: dict[str, Any]) -> dict[str, Any]:
    """The tiny profile in a minute, one case of each group; the dense score, because a dLLM of twenty steps is never
    quite right. The policy is validated after iterations 2 and 5 alone: the best one was made after the kill."""
    gate = params["evaluate"]["gate_task"]
    params["data"]["counts"] = {"pretrain": 200, "train": 64, "tune": 16, "gate": 24, "test": 24}
    params["pretrain"] |= {"width": 32, "layers": 1, "heads": 2, "inner": 32, "steps": 20, "warmup": 2}
    for model in params["models"].values():
        model["rows"] = dict.fromkeys(model["rows"], 8)
    params["headroom"] |= {"prompts": 8, "orders": 4, "cases": {"many": params["headroom"]["cases"]["many"]}}
    params["policy"] |= {"width": 16, "heads": 2, "mlp_width": 16}
    if params["policy"]["kind"] == "coupled":
        params["policy"]["pair_width"] = 8
    params["influence"] |= {"chunks": 2, "prompts": 8, "states": 16, "probes": 4, "num_epochs": 1}
    params["distill"] |= {"iterations": 2, "prompts": 8, "micro_batch": 64}
    params["train"] |= {
        "signal": "dense",
        "iterations": ITERATIONS,
        "prompts": 4,
        "group": 4,
        "micro_batch": 64,
        "validate_every": 3,
        "save_every": SAVED + 1,
    }
    params["evaluate"]["tasks"] = [gate]
    params["transfer"] = {"longer": params["transfer"]["longer"]}
    params["ood"] = {"related": params["ood"]["related"]}
    params["sweep"] |= {
        "block_lengths": [4, None],
        "rules": {name: [number] for name, number in SWEPT.items()},
        "seeds": [0, 1],
    }
    return params


class Clone:
    """A fresh clone: the files that Git knows or would add, committed, with small settings.

    edit: what else is done to the folder before the commit.
    """

    def __init__(self, folder: Path, edit: Callable[[Path], None] = lambda folder: None) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        # What the last run made is no part of a clone that starts from nothing.
        for name in set(listed.split("\0")) - {"", "dvc.lock"}:
            if (ROOT / name).is_file() and not name.startswith("outputs/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.set(shrink(self.params()))
        edit(folder)
        author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        for words in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "--quiet", "-m", "clone"]):
            subprocess.run(["git", *words], cwd=folder, check=True)

    def copy(self, folder: Path) -> Clone:
        """The same folder elsewhere, with all that has run in it."""
        other = object.__new__(Clone)
        other.folder = Path(shutil.copytree(self.folder, folder, symlinks=True))
        return other

    def params(self) -> dict[str, Any]:
        """The settings as they are now."""
        return yaml.safe_load((self.folder / "params.yaml").read_text(encoding="utf-8"))

    def set(self, params: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def run(self, *words: str, fails: bool = False, first: Path | None = None) -> str:
        """stdout of a command that must (or must not) succeed; ``first``: a folder to look into for it before all."""
        path = os.pathsep.join([*([str(first)] if first else []), str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        for name in ("MLFLOW_TRACKING_URI", "UNMASK_DEVICE"):
            environment.pop(name, None)
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def other_alpha(self) -> Iterator[None]:
        """Inside, the training is asked for another trade-off."""
        before, params = (self.folder / "params.yaml").read_text(encoding="utf-8"), self.params()
        params["train"]["alpha"] += 1
        self.set(params)
        try:
            yield
        finally:
            (self.folder / "params.yaml").write_text(before, encoding="utf-8")


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(\S+)'", output)
