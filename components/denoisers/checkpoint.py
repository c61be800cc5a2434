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
CHUNK = 1 << 24  # values of a tensor that are compared with the file at once
# Heads of pretraining that a masked language model has no use for (BERT's next sentence, ALBERT's order of sentences).
OTHER_HEADS = re.compile(r"(^|\.)(pooler|seq_relationship|sop_classifier)\.")
LEGACY = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}  # what transformers renames


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
            with _opened(file) as stored:
                for name in stored.keys():  # noqa: SIM118
                    stored.get_slice(name).get_shape()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is cut off or is no safetensors file ({error}). Download the checkpoint again."
            ) from error


def check_loaded(path: str, info: Mapping[str, Any], config: Any) -> None:
    """CheckpointError if loading left weights out, found unknown ones, or ones of another shape."""
    unknown = [key for key in info["unexpected_keys"] if not OTHER_HEADS.search(key)]
    keys = {"missing": info["missing_keys"], "unexpected": unknown, "mismatched": info["mismatched_keys"]}
    wrong = {f"{kind}_keys": sorted(map(str, found)) for kind, found in keys.items() if found}
    if _ties(config) and wrong.get("missing_keys") == ["lm_head.weight"]:
        del wrong["missing_keys"]
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong}, so that the model would not be the one that was saved. Check that the folder holds the "
            f"whole checkpoint that its config.json describes."
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


def check_equal(model: Any, files: Sequence[Path], renamed: Mapping[str, str]) -> None:
    """CheckpointError if a tensor of the model differs from the file's, or has none there to compare it with: loaders
    have replaced weights silently; or if the file holds whole numbers or 8-bit floats for weights.

    renamed: patterns of the file's names and what they become in the model.
    """
    names = [name for file in files for name in _names(file)]
    own, places = _places(model, names, renamed)
    compared = set[int]()
    for file in files:
        with _opened(file) as stored:
            for name in [name for name in stored.keys() if name in places]:  # noqa: SIM118
                loaded, kept = own[places[name]], stored.get_slice(name)
                if loaded.is_floating_point() and kept.get_dtype() not in FLOATS:
                    raise CheckpointError(
                        f"{file}: {name} is stored as {kept.get_dtype()}, which is no weight without its scale. Use a "
                        f"checkpoint that is not quantized."
                    )
                if not _same(loaded, kept):
                    raise CheckpointError(
                        f"{file}: {name} was loaded with other values than the file's. Use transformers >=5.13,<6."
                    )
                compared.add(loaded.data_ptr())  # a tied tensor is compared with its other name
    unseen = sorted(name for name, value in own.items() if value.numel() and value.data_ptr() not in compared)
    if unseen:
        raise CheckpointError(
            f"{files[0].parent}: {unseen[:5]} could be compared with no tensor of the files (they hold "
            f"{sorted(set(names) - places.keys())[:5]}). Save the checkpoint again by transformers >=5.13,<6."
        )


def _opened(file: Path) -> Any:
    return safe_open(file, framework="pt")


def _names(file: Path) -> list[str]:
    with _opened(file) as stored:
        return list(stored.keys())


def _places(
    model: Any, names: Sequence[str], renamed: Mapping[str, str]
) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """The model's tensors, and which of them each of the files' names means. Without a place are names that
    transformers knows as no weights (tables of positions); ``check_loaded`` has refused any other."""
    own, prefix = model.state_dict(), f"{model.base_model_prefix}."
    found = _found(own, prefix, {name: _renamed(name, {**renamed, **LEGACY}) for name in names})
    if renamed or len(found) == len(names):
        return own, found
    from transformers.core_model_loading import revert_weight_conversion

    # Some families keep q, k and v in one tensor: compared is what transformers would write back.
    stored: Any = revert_weight_conversion(model, own)
    again = _found(stored, prefix, {name: name for name in names})
    return (stored, again) if len(again) > len(found) else (own, found)


def _found(own: Mapping[str, Tensor], prefix: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """Of each wanted name the one that is there; a base model's file has no prefix, or the model has none."""
    forms = {name: (key, key.removeprefix(prefix), prefix + key) for name, key in wanted.items()}
    return {name: next(key for key in keys if key in own) for name, keys in forms.items() if own.keys() & set(keys)}


def _renamed(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def _same(loaded: Tensor, stored: Any) -> bool:
    """Whether all values are the file's. Chunks of rows bound the memory. All are read: the file is in the page cache
    since it was loaded, and a pass over 16 GB takes seconds, less than the checks of ``probe`` that follow."""
    if list(loaded.shape) != list(stored.get_shape()):
        return False
    if not loaded.ndim:
        return _equal(loaded, stored[:])
    step = max(1, CHUNK * len(loaded) // max(1, loaded.numel()))
    return all(_equal(loaded[i : i + step], stored[i : i + step]) for i in range(0, len(loaded), step))


def _equal(loaded: Tensor, stored: Tensor) -> bool:
    """NaN is equal to NaN: ``probe`` refuses it by its own name."""
    part = loaded.detach().cpu()
    wanted = stored.to(part.dtype)
    return torch.equal(wanted, part) or bool(((wanted == part) | (wanted.isnan() & part.isnan())).all())
