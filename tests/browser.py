"""A headless Chromium for the pages that are ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NONE = "No chromium is installed. The pages are only parsed: tests/unit/test_reports.py, test_pictures.py."


def dom(page: Path, folder: Path, milliseconds: int = 5000) -> str:
    """The page as HTML after its scripts ran for this long by its own clock; it reaches no other host."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1600,900"]
    options += [f"--virtual-time-budget={milliseconds}", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    options += ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += ["--single-process"]  # a frame in a sandbox would have a process, and a clock, of its own
    done = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout
