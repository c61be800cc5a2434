"""What a kill may leave behind, found and mended: broken files of DVC, at which every later `dvc repro` would stop with
an error, and outputs that were not finished."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..core.errors import DataError, SettingsError
from ..core.files import read_yaml, remove, replace_whole


def repair(root: Path) -> list[str]:
    """Mend the DVC repository at ``root``; what was done, in sentences. Nothing is done while another DVC works here.

    - `.dvc/tmp/rwlock` that is not JSON. It names readers and writers, and there are none.
    - Folders of the run cache without a file, or with empty ones: a run that was not recorded to its end.
    - `dvc.lock` that is not YAML. It is put aside, and DVC restores what it named from the run cache.

    Besides, outputs that a process wrote beside their place and could not rename go, once it is gone.
    """
    unfinished = list(_unfinished(root))
    for path in unfinished:
        remove(path)
    return [f"removed {path}, which a killed process did not finish" for path in unfinished] + _repair_dvc(root)


def _unfinished(root: Path) -> Iterator[Path]:
    """What `files.beside` left in the outputs and whose process is gone."""
    for path in sorted([*(root / "outputs").rglob(".*.part"), *(root / ".checkpoints").rglob(".*.part")]):
        number = re.fullmatch(r"\..+\.(\d{1,9})\.part", path.name)
        if number and not psutil.pid_exists(int(number[1])):
            yield path


def _repair_dvc(root: Path) -> list[str]:
    cache = _cache(root)
    rwlock, lock = root / ".dvc" / "tmp" / "rwlock", root / "dvc.lock"
    runs = [path for path in sorted((cache / "runs").glob("*/*")) if path.is_dir() and _is_hollow(path)]
    found = [path for path, broken in ((rwlock, _is_no_json), (lock, _is_no_yaml)) if path.is_file() and broken(path)]
    if not found and not runs:
        return []
    others = _others(root, cache)
    if others:
        names = ", ".join(map(str, [*found, *runs]))
        return [f"{names}: broken, and left so while DVC runs (process {others[0]}). Run `unmask repair` after it."]
    for path in runs:
        remove(path)
    said = [f"removed {path}, a run that a killed DVC did not record" for path in runs]
    if rwlock in found:
        remove(rwlock)
        said.append(f"removed {rwlock}, which a killed DVC left broken")
    if lock in found:
        replace_whole(lock, root / "dvc.lock.broken")
        said.append(f"renamed {lock} to dvc.lock.broken, since it is no YAML: left by a killed DVC, or in a merge")
    return said


def _is_hollow(folder: Path) -> bool:
    return all(path.is_file() and not path.stat().st_size for path in folder.iterdir())


def _is_no_json(path: Path) -> bool:
    try:
        return not isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except ValueError:
        return True


def _is_no_yaml(path: Path) -> bool:
    try:
        return not isinstance(read_yaml(path, ""), dict)
    except DataError:
        return True


def _cache(root: Path) -> Path:
    """The cache folder that DVC's configuration names; worktrees share one. SettingsError where DVC cannot read it."""
    from dvc.config import Config, ConfigError

    try:
        named = Config(str(root / ".dvc"))["cache"].get("dir") if (root / ".dvc").is_dir() else None
    except ConfigError as error:
        why = " ".join(str(error).split())
        raise SettingsError(
            f"{root / '.dvc'}: DVC's configuration cannot be read ({why}). Write the file again, or remove it."
        ) from error
    return Path(named) if named else root / ".dvc" / "cache"


def _others(root: Path, cache: Path) -> list[int]:
    """Process numbers of other DVCs that may work here: in this repository or its worktrees, or anywhere at a cache
    that lies elsewhere."""
    whole = root.resolve()
    family = next((path.parent for path in whole.parents if path.name == ".worktrees"), whole)
    shared = not cache.resolve().is_relative_to(family)
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = [Path(word).name for word in (process.info["cmdline"] or [])[:4]]
        if process.info["pid"] in mine or "dvc" not in words:
            continue
        place = process.info["cwd"]
        if shared or place is None or Path(place).is_relative_to(family):
            found.append(process.info["pid"])
    return found
