"""Whether a value out of a JSON file is of a type: a TypedDict, a dataclass, a list, a dict, a union or a plain one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict


def misfit(value: Any, kind: Any, place: str = "") -> str | None:
    """The place of the first part that ``kind`` does not have so, such as "order.0"; None where all is as it should be.

    Keys that a TypedDict or a dataclass does not have are left alone. A whole number is a float too.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return None
    if origin in (Union, UnionType):
        tried = [misfit(value, part, place) for part in parts]
        return None if None in tried else max(filter(None, tried), key=len)  # the part that fits the furthest
    record = is_typeddict(kind) or is_dataclass(kind)
    plain: Any = dict if record or origin in (dict, Mapping) else origin or ((int, float) if kind is float else kind)
    too_large = kind is float and type(value) is int and abs(value) > sys.float_info.max
    if too_large or not isinstance(value, plain) or (isinstance(value, bool) and kind is not bool):
        return place or "the object"
    content: Any = value
    inside: Iterable[tuple[str, Any, Any]] = ()
    if record:
        inside = _members(content, kind)
    elif plain is dict:
        inside = ((name, part, parts[1]) for name, part in content.items())
    elif plain is list:
        inside = ((str(i), part, parts[0]) for i, part in enumerate(content))
    found = (misfit(part, wanted, f"{place}.{name}" if place else name) for name, part, wanted in inside)
    return next((where for where in found if where is not None), None)


def _members(value: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, type) of each member; one that is missing, though it must be there, is of no type."""
    known = fields(kind) if is_dataclass(kind) else ()
    defaults = {f.name for f in known if f.default is not MISSING or f.default_factory is not MISSING}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        may_lack = name in defaults or get_origin(hint) is NotRequired or not getattr(kind, "__total__", True)
        wanted = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        if name in value:
            yield name, value[name], wanted
        elif not may_lack:
            yield name, None, _Missing


class _Missing:
    """No value is of this type."""
