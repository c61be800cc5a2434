"""The arguments of the model `unmask` of lm-evaluation-harness, and what it is asked with each request."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..core.devices import device_to_load
from ..core.errors import SettingsError
from ..denoisers.checkpoint import read_config
from ..denoisers.loading import DTYPES
from ..settings import nearest

TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one number
HARNESS_DEVICE = "cuda:0"
OF_SAMPLING = ("temperature", "top_p", "top_k", "do_sample")


@dataclass(frozen=True)
class Arguments:
    """What `--model_args` may contain.

    denoiser      folder or hub name of the dLLM.
    policy        a rule (entropy_bound:0.3), a policy folder, an .onnx file, or models:/NAME@ALIAS.
    length        positions of the canvas where a task names no max_gen_toks.
    block_length  None: the whole canvas.
    frontier      only so many of the block's masks, the first ones, are eligible; None: all.
    end_of_text   whether a row is over at its end token (`decode.end_of_text` of a profile).
    suppress_eos  of a rule over the whole canvas: commit ends of the text last (`sweep.suppress_eos` of a profile:
                  false, true or renormalize).
    alpha         speed exponent, of a policy that was trained for several.
    choose        how the policy's draw is taken: mode or sample.
    seed          of what is sampled.
    dtype         of the weights: float32, bfloat16, float64, or auto for the one that the checkpoint names.
    cache         of keys and values in the dLLM: none, prefix or dual.
    device        auto spreads the layers over all GPUs. UNMASK_DEVICE where it is none, or cuda:0, the harness's own.
    batch_size    rows in flight; None or "auto": as many as are of use. It changes no float32 text.
    """

    denoiser: str
    policy: str
    length: int = 256
    block_length: int | None = None
    frontier: int | None = None
    end_of_text: bool = False
    suppress_eos: bool | str = False
    alpha: float | None = None
    choose: str = "mode"
    seed: int = 0
    dtype: str = "auto"
    revision: str | None = None
    cache: str = "none"
    device: str | None = None
    batch_size: int | str | None = None
    max_batch_size: int | None = None

    @staticmethod
    def of(given: dict[str, Any]) -> Arguments:
        """SettingsError for an unknown, missing or unusable argument."""
        known = [field.name for field in fields(Arguments)]
        for name in given:
            if name not in known:
                raise SettingsError(
                    f"model_args has {name!r}{nearest(name, known)}. Use denoiser, policy and perhaps {known[2:]}."
                )
        for name in ("denoiser", "policy"):
            if not isinstance(given.get(name), str):
                raise SettingsError(f"model_args has no {name}. Write --model_args denoiser=FOLDER,policy=NAME.")
        size = given.get("batch_size")
        given = given | {"batch_size": int(size) if isinstance(size, str) and size.isdecimal() else size}
        for name in ("length", "block_length", "frontier", "seed", "batch_size", "max_batch_size"):
            if given.get(name) is not None and not (name == "batch_size" and str(size).startswith("auto")):
                whole("model_args", name, given[name], least=int(name != "seed"))
        alpha = given.get("alpha")
        if alpha is not None and (type(alpha) not in (int, float) or not 0 <= alpha < math.inf):
            raise SettingsError(f"model_args has alpha={alpha!r}. Give a number of at least 0.")
        if given.get("choose", "mode") not in ("mode", "sample"):
            raise SettingsError(f"model_args has choose={given['choose']!r}. Use mode or sample.")
        if type(given.get("end_of_text", False)) is not bool:
            raise SettingsError(f"model_args has end_of_text={given['end_of_text']!r}. Use true or false.")
        if given.get("suppress_eos", False) not in (False, True, "renormalize"):
            raise SettingsError(
                f"model_args has suppress_eos={given['suppress_eos']!r}. Use true, false or renormalize."
            )
        if isinstance(given.get("revision"), (int, float)):  # the harness reads a hash of digits as a number
            given = given | {"revision": str(given["revision"])}
        return Arguments(**given)

    @property
    def rows(self) -> int | None:
        """Rows in flight, None for as many as are of use."""
        return self.max_batch_size if isinstance(self.batch_size, str) else self.batch_size

    @property
    def where(self) -> str:
        """The device of the dLLM. The harness names cuda:0 on every machine, which asks for nothing."""
        if self.device is None or self.device == HARNESS_DEVICE:
            return device_to_load(checkpoint=True)
        return "cpu" if self.device.startswith("cuda") and not torch.cuda.is_available() else self.device

    @property
    def weights(self) -> str:
        """The type of the weights: float32 where a checkpoint names none that is carried."""
        if self.dtype != "auto":
            return self.dtype
        config = read_config(self.denoiser, self.revision)
        named = str(config.get("dtype") or config.get("torch_dtype"))
        return named if named in DTYPES else "float32"


def check_policy(learned: Any, asked: Arguments) -> None:
    """SettingsError for an argument that the policy does not take. learned: None for a rule."""
    if asked.suppress_eos and (learned is not None or asked.block_length is not None):
        what = f"suppress_eos={asked.suppress_eos}, policy={asked.policy} and block_length={asked.block_length}"
        raise SettingsError(f"model_args has {what}. Leave suppress_eos to a rule over the whole canvas.")
    file = getattr(learned, "_file", None)
    takes = bool(getattr(getattr(learned, "shape", None), "alphas", ())) or "alpha_B" in getattr(file, "inputs", ())
    if asked.alpha is not None and not takes:
        raise SettingsError(f"alpha={asked.alpha}: {asked.policy} was trained for one speed or none. Leave alpha out.")


def generation(how: dict[str, Any], length: int) -> tuple[int, list[str]]:
    """Canvas length and stop strings of a request. SettingsError for what this decoder does not do."""
    unknown = sorted(set(how) - {"until", *TOKENS, *OF_SAMPLING})
    if unknown:
        raise SettingsError(f"generation_kwargs has {unknown}, which this decoder has not. Remove them from the task.")
    sampled = how.get("do_sample")
    if sampled or (sampled is None and float(how.get("temperature") or 0.0) > 0):
        raise SettingsError(
            "the task samples tokens, and this decoder commits the most likely one. Pass --gen_kwargs do_sample=false."
        )
    until = how.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    given = next((name for name in TOKENS if how.get(name) is not None), None)
    return length if given is None else whole("generation_kwargs", given, how[given]), until


def whole(place: str, name: str, value: Any, least: int = 1) -> int:
    """The value. SettingsError where it is no whole number of at least ``least``: with no rows a decode never ends."""
    if type(value) is not int or value < least:
        raise SettingsError(f"{place} has {name}={value!r}. Give a whole number of at least {least}.")
    return value
