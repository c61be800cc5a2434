"""The library's installed name, in the repository: an alias of ``components``, so that no module is there twice.

The wheel does not contain this file. There ``unmask_policies`` is the folder components/ itself (setup.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

import components


class _Alias(InspectLoader):
    """Load the module with this specification, which stays the module's own."""

    def __init__(self, own: ModuleSpec) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(self.own.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own  # the import system has put the alias's there

    def get_code(self, fullname: str) -> CodeType | None:  # for `python -m`
        loader = self.own.loader
        return loader.get_code(self.own.name) if isinstance(loader, InspectLoader) else None

    def get_source(self, fullname: str) -> str | None:
        loader = self.own.loader
        return loader.get_source(self.own.name) if isinstance(loader, InspectLoader) else None


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        first, _, rest = fullname.partition(".")
        if first != __name__ or not rest:
            return None
        own = find_spec(f"{components.__name__}.{rest}")
        if own is None:
            return None
        return ModuleSpec(fullname, _Alias(own), is_package=own.submodule_search_locations is not None)


sys.meta_path.insert(0, _Finder())
