"""The model `unmask` of lm-evaluation-harness: a frozen dLLM, decoded by a policy.

Importing this module registers it. `unmask lm_eval` runs the harness with it; a harness with plugins (after 0.4.13)
finds it by the entry point ``lm_eval.models``. The results' "config" contains the mean number of forward passes.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from torch import Tensor

from ..core import processes
from ..core.errors import DataError, SettingsError
from ..core.online import offline_unless_hub_answers
from ..core.rng import seed_of
from ..decode.engine import rollout
from ..decode.job import DecodeOptions, Job
from ..denoisers import load, with_cache
from ..policies.heuristics import SuppressTokens
from ..policies.rules import is_random
from ..stages.common.progress import progress
from ..tasks.example import Example
from .lm_eval_arguments import Arguments, check_policy, generation
from .resolve import loaded, place, rule


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
        if (started := processes.launched()) > 1:
            raise SettingsError(
                f"lm_eval was started as {started} processes, each of which would answer every request. Start one; "
                f"device=auto spreads a large dLLM over all GPUs."
            )
        learned = loaded(asked.policy, Path.cwd())
        check_policy(learned, asked)
        self.policy: Any = learned or rule(asked.policy)
        denoiser, encoder = load(asked.denoiser, asked.where, asked.weights, asked.revision)
        if asked.suppress_eos:
            late = tuple(sorted(encoder.end_ids))
            self.policy = SuppressTokens(self.policy, late, asked.suppress_eos == "renormalize")
        place([self.policy], denoiser)
        self.denoiser = with_cache(denoiser, asked.cache)
        self.encoder = encoder.stopping() if asked.end_of_text else encoder
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
        length, until = generation(how, self.arguments.length)
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
            frontier=self.arguments.frontier,
            end_ids=self.encoder.stop_ids,
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
