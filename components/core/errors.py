"""The few errors of the library. Each is also the built-in that a caller would expect.

Every message states the value at fault, then the remedy.
"""

from __future__ import annotations

import csv
import errno
import json
import re


class SettingsError(ValueError):
    """A setting, or a combination of settings, cannot work."""


class DataError(ValueError):
    """A prompt, a dataset or a file is not what it must be."""


class CheckpointError(RuntimeError):
    """A model or a checkpoint does not load to what it claims to be."""


class ParityError(RuntimeError):
    """Two things that must compute the same do not."""


class PromotionRefused(RuntimeError):
    """A policy did not pass the gate."""


class ProcessLost(RuntimeError):
    """Another process of the same training has died."""


OURS = (SettingsError, DataError, CheckpointError, ParityError, PromotionRefused, ProcessLost)
FULL = (errno.ENOSPC, errno.EDQUOT)
SAYS_FULL = ("No space left on device", "disk is full", "Disk quota exceeded")  # what wraps an OSError
KEYS = "pass|pwd|token|secret|key|credential|signature|auth"  # parts of the names of what a URI keeps to itself
STORES = ("mlflow", "sqlalchemy", "sqlite3")
FILES = ("safetensors", "safetensors_rust", "onnx", "onnxruntime", "google", "huggingface_hub")


def masked(text: str) -> str:
    """``text`` with user, password and token of every URI in it masked, fit to be printed."""
    text = re.sub(r"(?<=://)[^/\s'\"][^\s]*@", "***@", text)
    return re.sub(rf"(?i)([?&][\w-]*(?:{KEYS})[\w-]*=)[^&\s'\"]*", r"\1***", text)


def sentence(error: BaseException) -> str | None:
    """What a library raised about a file, a disk or a store, in a sentence. None for an error in this program."""
    if isinstance(error, OURS):
        return masked(str(error))
    package = type(error).__module__.partition(".")[0]
    what = masked((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename is not None else ""
    if getattr(error, "errno", None) in FULL or any(word in str(error) for word in SAYS_FULL):
        return f"{place}the disk is full. Free space and run the command again; a training resumes."
    if isinstance(error, OSError):
        return f"{place}{masked(error.strerror or what)}. Check that the file is there and may be read and written."
    if isinstance(error, UnicodeError | json.JSONDecodeError | csv.Error):
        return f"a file cannot be read ({what}). Delete the output it belongs to and run `dvc repro`."
    if package in STORES:
        return f"the tracking store failed ({what}). Wait until no one else writes to it, or repair it."
    if package in FILES:
        return f"a file of a model or policy cannot be read or written ({what}). Restore it, or run `dvc repro`."
    return None
