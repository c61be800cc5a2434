"""The model `unmask` of lm-evaluation-harness: a frozen dLLM, decoded by a policy.

Importing this module registers it. `unmask lm_eval` runs the harness with it; a harness with plugins (after 0.4.13)
finds it by the entry point ``lm_eval.models``. The results' "config" contains the mean number of forward passes.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from torch import Tensor

from ..core.errors import DataError, SettingsError
from ..core.online import offline_unless_hub_answers
from ..core.rng import seed_of
from ..decode.engine import rollout
from ..decode.job import DecodeOptions, Job
from ..denoisers import load, with_cache
from ..policies.rules import is_random
from ..settings import nearest
from ..stages.common.progress import progress
from ..tasks.example import Example
from .resolve import loaded, place, rule

TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one number
OF_SAMPLING = ("temperature", "top_p", "top_k", "do_sample")


@dataclass(frozen=True)
class Arguments:
    """What `--model_args` may contain.

    denoiser      folder or hub name of the dLLM.
    policy        a rule (entropy_bound:0.3), a policy folder, an .onnx file, or models:/NAME@ALIAS.
    length        positions of the canvas where a task names no max_gen_toks.
    block_length  None: the whole canvas.
    alpha         speed exponent, of a policy that was trained for several.
    choose        how the policy's draw is taken: mode or sample.
    seed          of what is sampled.
    cache         of keys and values in the dLLM: none, prefix or dual.
    batch_size    rows in flight; None or "auto": as many as are of use. It changes no float32 text.
    """

    denoiser: str
    policy: str
    length: int = 256
    block_length: int | None = None
    alpha: float | None = None
    choose: str = "mode"
    seed: int = 0
    dtype: str = "float32"
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
        for name in ("length", "block_length", "seed", "batch_size", "max_batch_size"):
            if given.get(name) is not None and not (name == "batch_size" and str(size).startswith("auto")):
                _whole("model_args", name, given[name], least=int(name != "seed"))
        alpha = given.get("alpha")
        if alpha is not None and (type(alpha) not in (int, float) or not 0 <= alpha < math.inf):
            raise SettingsError(f"model_args has alpha={alpha!r}. Give a number of at least 0.")
        if given.get("choose", "mode") not in ("mode", "sample"):
            raise SettingsError(f"model_args has choose={given['choose']!r}. Use mode or sample.")
        if isinstance(given.get("revision"), (int, float)):  # the harness reads a hash of digits as a number
            given = given | {"revision": str(given["revision"])}
        return Arguments(**given)

    @property
    def rows(self) -> int | None:
        """Rows in flight, None for as many as are of use."""
        return self.max_batch_size if isinstance(self.batch_size, str) else self.batch_size


@dataclass(frozen=True)
class Asked:
    """One request: the prompt's ids, its address, the canvas and the strings that end the text."""

    ids: Tensor
    uid: int
    length: int
    until: Sequence[str]


@register_model("unmask")
class Unmask(LM):
    """A dLLM decoded by a policy, for tasks that generate text. Keywords: ``Arguments``."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.arguments = asked = Arguments.of(given)
        device = asked.device or "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"  # the harness names cuda:0 on every machine
        self.policy = loaded(asked.policy, Path.cwd()) or rule(asked.policy)
        _check_alpha(self.policy, asked)
        denoiser, self.encoder = load(asked.denoiser, device, asked.dtype, asked.revision)
        self.denoiser = with_cache(denoiser, asked.cache)
        place([self.policy], denoiser)
        self._device = denoiser.device  # of "auto": that of the first part
        self._chats = False  # whether contexts come out of ``apply_chat_template``
        self._passes: list[int] = []

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Unmask:
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**(more | arg_dict))

    # --- texts ----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One text a request, in order: before the first end token and before the first stop string.

        DataError for a prompt that the dLLM cannot take, SettingsError for a way of generating that it has not.
        """
        if not requests:
            return []
        asked = [self._asked(*request.args) for request in requests]
        random = self.arguments.choose == "sample" or is_random(self.arguments.policy.partition(":")[0])
        options = DecodeOptions(
            seed=self.arguments.seed, choose="sample" if random else "mode", rows=self.arguments.rows
        )
        with progress("decode", len(asked)) as tick:
            job = self._job(asked)
            done = rollout(self.denoiser, self.policy, job, options, progress=lambda count: tick("", count))
        self._passes += done.nfe_R.tolist()
        texts = []
        for one, canvas_L, whole in zip(asked, done.canvas_RL, done.finished_R.tolist(), strict=True):
            texts.append(_cut(self.encoder.text(canvas_L[: one.length]), one.until) if whole else "")
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _asked(self, context: str, how: dict[str, Any]) -> Asked:
        length, until = _generation(how, self.arguments.length)
        ids = self._ids(context)
        self.encoder.check_length(context, len(ids), length)
        return Asked(ids, seed_of(Example("", context, "").uid), length, until)

    def _ids(self, context: str) -> Tensor:
        """The ids of a context: a chat as its template wrote it, else the plain text. DataError for control text."""
        if self._chats:  # ``apply_chat_template`` has checked what was said
            return self.encoder.plain(context)
        checked = self.encoder.prompt(context)
        return checked if self.encoder.tokenizer.chat_template is None else self.encoder.plain(context)

    def _job(self, asked: Sequence[Asked]) -> Job:
        uid_R = torch.tensor([one.uid for one in asked], dtype=torch.int64)
        length_R = torch.tensor([one.length for one in asked], dtype=torch.int64)
        seen: Counter[int] = Counter()
        members = []
        for one in asked:  # a request that is repeated is another draw
            members.append(seen[one.uid])
            seen[one.uid] += 1
        block, alpha = self.arguments.block_length, self.arguments.alpha
        job = Job(
            [one.ids for one in asked],
            torch.arange(len(asked)),
            uid_R,
            torch.tensor(members),
            length_R,
            length_R if block is None else torch.full_like(length_R, block),
            torch.zeros_like(length_R),
        )
        return job if alpha is None else replace(job, alpha_R=torch.full(length_R.shape, float(alpha)))

    # --- chats ------------------------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as the dLLM's own template writes it. DataError for control text in a message."""
        tokenizer = self.encoder.tokenizer
        if tokenizer.chat_template is None:
            raise SettingsError(f"{self.arguments.denoiser} has no chat template. Leave --apply_chat_template out.")
        for message in chat_history:
            self.encoder.prompt(message["content"])
        self._chats = True
        return tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if isinstance(chat_template, str):
            raise SettingsError(f"apply_chat_template={chat_template!r} names a template. Use the dLLM's own: no name.")
        return self.encoder.tokenizer.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return str(self.encoder.tokenizer.name_or_path).replace("/", "__")

    # --- the rest ---------------------------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """What the harness puts into the results: the decode, and its mean number of forward passes."""
        passes = sum(self._passes) / len(self._passes) if self._passes else None
        asked = self.arguments
        return {"policy": asked.policy, "block_length": asked.block_length, "forward_passes": passes}

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise SettingsError(
            "the task asks for log-likelihoods, and a masked dLLM has none in closed form. Use a task that generates "
            "text (gsm8k, minerva_math, humaneval)."
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        self.loglikelihood(requests)


def _check_alpha(policy: Any, asked: Arguments) -> None:
    """SettingsError where an alpha is given to a policy that was not trained for several."""
    file = getattr(policy, "_file", None)
    takes = bool(getattr(getattr(policy, "shape", None), "alphas", ())) or "alpha_B" in getattr(file, "inputs", ())
    if asked.alpha is not None and not takes:
        raise SettingsError(f"alpha={asked.alpha}: {asked.policy} was trained for one speed or none. Leave alpha out.")


def _generation(how: dict[str, Any], length: int) -> tuple[int, list[str]]:
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
    return length if given is None else _whole("generation_kwargs", given, how[given]), until


def _whole(place: str, name: str, value: Any, least: int = 1) -> int:
    """The value. SettingsError where it is no whole number of at least ``least``: with no rows a decode never ends."""
    if type(value) is not int or value < least:
        raise SettingsError(f"{place} has {name}={value!r}. Give a whole number of at least {least}.")
    return value


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((text.index(stop) for stop in until if stop and stop in text), default=len(text))]


def run(words: Sequence[str]) -> None:
    """`lm_eval WORDS`, with the model `unmask`. DataError where a task's rows are on a hub that does not answer."""
    from lm_eval.__main__ import cli_evaluate

    offline_unless_hub_answers()  # else the harness tries for half a minute
    sys.argv = ["lm_eval", *words]
    try:
        cli_evaluate()
    except ConnectionError as error:
        raise DataError(
            f"lm_eval: {str(error).strip().splitlines()[0]}. Connect to the network, or name a task over local files "
            f"(--include_path FOLDER)."
        ) from error
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith("lm_eval."):
            raise
        raise SettingsError(
            f"lm_eval: {str(error).rstrip('.')}. Use what `unmask lm_eval run --help` names."
        ) from error
