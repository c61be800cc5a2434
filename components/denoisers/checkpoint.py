"""The files of a checkpoint: config.json and safetensors, read without executing anything.

The names and shapes in the files are compared with those that the config asks for before a model is trusted, and the
loaded tensors with the files afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.online import offline_unless_hub_answers

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of what a weight is stored as
ROWS = 16  # of each tensor that are compared with the file


def read_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """config.json of a folder or hub repository. CheckpointError if it cannot be had, or is no JSON object."""
    if (Path(path) / "config.json").exists():
        return read_object(Path(path) / "config.json")
    why = "the folder has no config.json" if Path(path).is_dir() else "there is no such folder"
    if not Path(path).exists() and HUB_NAME.fullmatch(path):
        from transformers.utils.hub import cached_file

        offline_unless_hub_answers()
        try:
            return read_object(Path(str(cached_file(path, "config.json", revision=revision))))
        except OSError as error:
            why = str(error).splitlines()[0].rstrip(".")
    raise CheckpointError(f"no model at {path!r}: {why}. Give a folder that holds a dLLM, or a hub name while online.")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. CheckpointError if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Download the checkpoint again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object. Download the checkpoint again.")
    return value


def commit_of(path: str, revision: str | None = None) -> str | None:
    """The commit of a hub repository that ``revision`` names: on the hub, or in the cache where there is no network."""
    config = find(path, "config.json", revision)
    return None if config is None else config.parent.name  # .../snapshots/COMMIT/config.json


def weight_files(path: str, revision: str | None = None) -> list[Path]:
    """The safetensors files of a checkpoint. CheckpointError if there are none, if one is missing, or if an index names
    one outside the folder."""
    whole = find(path, WHOLE, revision)
    if whole is not None:
        return [whole]
    index = find(path, INDEX, revision)
    if index is None:
        pickled = [p.name for p in sorted(Path(path).glob("*")) if p.suffix in PICKLED]
        if pickled:
            raise CheckpointError(
                f"{path}: its weights are pickled ({pickled[0]}), and reading a pickle may run any program. Use a "
                f"folder with safetensors."
            )
        raise CheckpointError(f"{path}: there is no {WHOLE} and no {INDEX}. Download the checkpoint's weights.")
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index} has no weight_map of names. Download the checkpoint again.")
    files = []
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the weights {name!r}, which are no safetensors file of the checkpoint's own folder. "
                f"Put all shards beside the index."
            )
        file = find(path, name, revision)
        if file is None:
            raise CheckpointError(f"{path}: {name} is missing, which {INDEX} names. Download the checkpoint again.")
        files.append(file)
    return files


def find(path: str, name: str, revision: str | None) -> Path | None:
    """A file of the checkpoint, downloaded where it is not a folder; None if the checkpoint has none of that name."""
    if Path(path).is_dir():
        return Path(path) / name if (Path(path) / name).is_file() else None

    from transformers.utils.hub import cached_file

    offline_unless_hub_answers()
    try:
        found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise CheckpointError(f"{path}: {name} cannot be fetched ({str(error).splitlines()[0]}). Go online.") from error
    return None if found is None else Path(str(found))


def check_readable(files: Sequence[Path]) -> None:
    """CheckpointError if one is cut off or is no safetensors file."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118
                    stored.get_slice(name).get_shape()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is cut off or is no safetensors file ({error}). Download the checkpoint again."
            ) from error


def check_loaded(path: str, info: Mapping[str, Any], config: Any) -> None:
    """CheckpointError if loading left weights out, found unknown ones, or ones of another shape."""
    wrong = {k: sorted(map(str, info[k])) for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[k]}
    if _ties(config) and wrong.get("missing_keys") == ["lm_head.weight"]:
        del wrong["missing_keys"]
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong}, so that weights would stay random. Check that the folder holds the whole checkpoint "
            f"that its config.json describes."
        )


def _ties(config: Any) -> bool:
    """Whether the head is the embedding. Perceiver's config does not say."""
    return getattr(config, "tie_word_embeddings", False)


def check_tied(path: str, model: Any) -> None:
    """CheckpointError if the config ties the head to the embedding and the file holds two different ones."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if _ties(model.config) and head is not None and not torch.equal(head.weight, words.weight):
        raise CheckpointError(
            f"{path}: config.json ties the output head to the embedding, and the weights hold two different ones. Set "
            f"weight_tying (LLaDA) or tie_word_embeddings to false, or remove the head."
        )


def check_rotary(path: str, model: Any) -> None:
    """CheckpointError if rotary frequencies are not those of the config: no file holds them, and a class whose weights
    are set anew after its construction has left them as whatever the memory held."""
    for module in model.modules():
        own = {name: value for name, value in module.named_buffers(recurse=False) if name.endswith("inv_freq")}
        unsaved = own.keys() & module._non_persistent_buffers_set
        wanted = dict(type(module)(module.config).named_buffers()) if unsaved else {}
        if not all(torch.allclose(own[name], wanted[name], rtol=1e-5, atol=0) for name in unsaved):
            raise CheckpointError(
                f"{path}: the rotary frequencies are not those of config.json: positions would be read wrongly. "
                f"Use transformers >=5.13,<6."
            )


def check_equal(model: torch.nn.Module, files: Sequence[Path], renamed: Mapping[str, str]) -> None:
    """CheckpointError if the first rows of a tensor differ from the file's: loaders have replaced weights silently; or
    if the file holds whole numbers or 8-bit floats for weights.

    renamed: patterns of the file's names and what they become in the model.
    """
    own = model.state_dict()
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                loaded, kept = own.get(_renamed(name, renamed)), stored.get_slice(name)
                if loaded is not None and loaded.is_floating_point() and kept.get_dtype() not in FLOATS:
                    raise CheckpointError(
                        f"{file}: {name} is stored as {kept.get_dtype()}, which is no weight without its scale. Use a "
                        f"checkpoint that is not quantized."
                    )
                if loaded is not None and not _same(loaded, kept):
                    raise CheckpointError(
                        f"{file}: {name} was loaded with other values than the file's. Use transformers >=5.13,<6."
                    )


def _renamed(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def _same(loaded: Tensor, stored: Any) -> bool:
    wanted = stored[:ROWS] if stored.get_shape() else stored[:]
    part = (loaded[:ROWS] if loaded.ndim else loaded).detach().cpu()
    wanted = wanted.to(part.dtype)
    return wanted.shape == part.shape and torch.equal(wanted.nan_to_num(), part.nan_to_num())
