"""Which extras of the package are installed, and how to install a missing one."""

from __future__ import annotations

import re
from importlib import metadata

DISTRIBUTION = "unmask-policies"


def needs() -> dict[str, list[str]]:
    """Extra -> its distributions, those of the extras that it includes among them; '' for the library's own.

    Empty where the package is not installed.
    """
    from packaging.requirements import Requirement

    try:
        lines = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return {}
    own = {"": [need.name for need in lines if need.marker is None]}
    extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    direct = {extra: [need for need in lines if _asks_for(need, extra)] for extra in extras}

    def whole(extra: str) -> list[str]:
        inner = [name for need in direct[extra] if _normal(need.name) == DISTRIBUTION for name in need.extras]
        plain = [need.name for need in direct[extra] if _normal(need.name) != DISTRIBUTION]
        return [*plain, *(name for one in sorted(inner) for name in whole(one))]

    return own | {extra: whole(extra) for extra in extras}


def installed() -> dict[str, bool]:
    """Extra -> whether all of it is there."""
    return {extra: all(map(_is_installed, names)) for extra, names in needs().items() if extra}


def pip_command(extra: str) -> str:
    return f"pip install -e '.[{extra}]' in the repository, or pip install '{DISTRIBUTION}[{extra}]'"


def explain(error: ModuleNotFoundError) -> str | None:
    """What to install where a module of an extra is missing; None for any other module."""
    module = _normal((error.name or "").partition(".")[0])
    extra = next((extra for extra, names in needs().items() if extra and module in map(_module, names)), None)
    if extra is None:
        return None
    return f"{error.name} is not installed; the extra {extra} has it. Run {pip_command(extra)}."


def _asks_for(need: object, extra: str) -> bool:
    return re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", str(getattr(need, "marker", ""))) is not None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _module(name: str) -> str:
    """The module of a distribution, where names tell: psycopg2-binary brings psycopg2."""
    return _normal(name).removesuffix("-binary")


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
