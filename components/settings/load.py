"""Reading of params.yaml: checked settings, or a SettingsError that names each value that cannot work."""

from __future__ import annotations

import reprlib
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..core.errors import DataError, SettingsError
from ..core.files import read_yaml
from .policy import Confidence, Coupled, Feature
from .profile import Settings
from .section import nearest

KINDS: dict[Any, type[BaseModel]] = {"confidence": Confidence, "coupled": Coupled, "feature": Feature}


def read(path: Path) -> Settings:
    """The settings of params.yaml. SettingsError names each value that cannot work."""
    try:
        raw = read_yaml(path, "Run inside the repository, or restore the file.")
    except DataError as error:
        raise SettingsError(f"{path.name} cannot be read: {error}") from error
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(path, e) for e in error.errors())) from None


def _sentence(path: Path, error: Any) -> str:
    # pydantic puts the member of a union into the path; the file has it as `kind`.
    loc = tuple(part for before, part in pairwise((None, *error["loc"])) if before != "policy" or part not in KINDS)
    if error["type"] == "union_tag_not_found":
        loc = (*loc, "kind")
    parts = [part if str(part).isprintable() else repr(part) for part in loc if part != "[key]"]
    where = ".".join(map(str, parts)) or "the whole file"
    if error["type"] == "extra_forbidden":
        return f"{path}: {where} is not a setting{nearest(str(error['loc'][-1]), _siblings(error['loc']))}. Remove it."
    if error["type"] in ("missing", "union_tag_not_found"):
        return f"{path}: {where} is missing. Add it."
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {where}: {text}"
    value = reprlib.repr(error["input"])
    return f"{path}: {where}={value}: {text[0].lower() + text[1:]}. Use another."


def _siblings(loc: tuple[Any, ...]) -> list[str]:
    """The fields of the model at this path."""
    model: Any = Settings
    for part in loc[:-1]:
        if part in KINDS and KINDS[part] in get_args(model):
            model = KINDS[part]
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
        elif get_args(model):
            model = get_args(model)[-1]
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
