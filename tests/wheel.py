"""The wheel of this repository, built without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("components", "flows")
NAME = "unmask_policies"  # of components/ in the wheel


def copy_source(folder: Path) -> Path:
    """What a wheel is built from, beside the checkout: setuptools would take what an older build/ there still holds."""
    copy = folder / "source"
    for package in (*PACKAGES, NAME, "tests"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, copy)
    (copy / "README.md").write_text("# copy", encoding="utf-8")
    return copy


def build_wheel(folder: Path) -> Path:
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*wheel, "-w", folder, copy_source(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built
