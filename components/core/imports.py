"""Objects of a user's own, named by import path: ``package.module:Name``."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import SettingsError

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_import_path(text: str) -> bool:
    """Whether the text has the form ``package.module:Name``."""
    return _PATH.fullmatch(text) is not None


def named(path: str) -> Any:
    """The object at an import path; modules of the current folder are found too.

    SettingsError where the module cannot be imported, or has no such name.
    """
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"{path} cannot be imported ({error}). Name it as package.module:Name.") from error
