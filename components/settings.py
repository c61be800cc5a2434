"""params.yaml as frozen pydantic models; what cannot work is refused before anything runs.

No field has a default: what is not in params.yaml is not tracked by DVC. Settings stop at ``stages``: below it there
are numbers and objects. A stage's function names the sections it reads, and those are its ``params:`` in dvc.yaml.
"""

from __future__ import annotations

import difflib
import reprlib
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.errors import SettingsError
from components.tasks import TASKS, Task, build

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Layout = Literal["llada", "dream"]
Family = Literal["random", "left_to_right", "confidence", "margin", "entropy", "threshold", "factor", "entropy_bound"]
SPLITS = ("pretrain", "train", "tune", "gate", "test")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSettings(Section):
    """kind: a name of ``components.tasks.TASKS``; knobs: its keyword arguments; canvas: positions, null for its own."""

    kind: str
    knobs: dict[str, Any]
    canvas: Count | None

    def build(self) -> Task:
        """SettingsError for an unknown kind or knob, or one that cannot work."""
        canvas = {} if self.canvas is None else {"canvas_length": self.canvas}
        return build(self.kind, **self.knobs, **canvas)

    @property
    def length(self) -> int:
        """Positions of the canvas."""
        return self.canvas or self.build().canvas_length

    @property
    def marker(self) -> str:
        """The character that its prompts begin with; none where a prompt is a text."""
        marker = signature(TASKS[self.kind]).parameters.get("marker")
        return self.knobs.get("marker", "" if marker is None else marker.default)

    @model_validator(mode="after")
    def _builds(self) -> TaskSettings:
        known = signature(TASKS[self.kind]).parameters if self.kind in TASKS else {}
        if known and self.canvas is not None and "canvas_length" not in known:
            raise ValueError(f"canvas={self.canvas}: task {self.kind!r} has a canvas of its own; a grid of another "
                             f"length would be none; write null")  # fmt: skip
        # Whether this machine can confine programs is asked when they are to be run, not by everybody who reads this.
        if self.knobs.get("execute") and set(self.knobs) <= set(known):
            return self
        try:
            self.build()
        except TypeError as error:
            raise ValueError(f"knobs={self.knobs}: task {self.kind} cannot be made with them ({error}); nothing could "
                             f"be asked or scored; give each a value of its own type") from error  # fmt: skip
        return self


class Counts(Section):
    """Prompts per split. pretrain is for the embedded dLLMs alone; the others never meet it, nor one another."""

    pretrain: Annotated[int, Field(ge=0)]
    train: Count
    tune: Count
    gate: Count
    test: Count


class Data(Section):
    seed: Seed
    tasks: dict[str, TaskSettings]
    counts: Counts


class Model(Section):
    """source: "embedded" (stage pretrain makes it) or a hub name or folder. dtype: of the weights when they are used;
    "auto" (embedded only) is what stage pretrain found to be faster on its machine, and recorded."""

    source: str
    layout: Layout
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float64"]


class Models(Section):
    llada: Model
    dream: Model


class Pretrain(Section):
    """rows: rows of each task in one step's batch."""

    seed: Seed
    width: Count
    layers: Count
    heads: Count
    inner: Count
    steps: Count
    learning_rate: Rate
    warmup: Annotated[int, Field(ge=0)]
    rows: dict[str, Count]

    @model_validator(mode="after")
    def _splits(self) -> Pretrain:
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} with heads={self.heads} does not split; rotary positions need an "
                             f"even width per head; use a multiple of {2 * self.heads}")  # fmt: skip
        return self


class Policy(Section):
    """See ``components.policies.confidence.Shape``; features: whether the frozen model's hidden states are read."""

    inputs: Annotated[
        tuple[Literal["confidence", "log_odds", "entropy", "margin", "bound", "top"], ...], Field(min_length=1)
    ]
    top_k: Annotated[int, Field(ge=0)]
    features: bool
    width: Count
    heads: Count
    inner: Count
    period: Positive
    bias: float
    where: Literal["eligible", "masked", "all"]
    action: Literal["bernoulli", "dpls", "categorical"]

    @model_validator(mode="after")
    def _agrees(self) -> Policy:
        if ("top" in self.inputs) != (self.top_k > 0):
            raise ValueError(f"inputs {list(self.inputs)} with top_k={self.top_k} do not agree; the policy would read "
                             f"what is not there; name top and give top_k >= 1, or neither")  # fmt: skip
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} with heads={self.heads} does not split; rotary positions need an "
                             f"even width per head; use a multiple of {2 * self.heads}")  # fmt: skip
        return self


class Domain(Section):
    """What a policy is trained for: over which dLLM, and on which tasks with which weights."""

    model: Layout
    tasks: Annotated[dict[str, Count], Field(min_length=1)]


class Decode(Section):
    """block_length: null for full diffusion. temperature, scale: test-time knobs of the policy (tau_pi, beta).
    choose: how the policy is decoded when it is judged and served."""

    block_length: Count | None
    temperature: Positive
    scale: Positive
    choose: Literal["mode", "sample"]


class Distill(Section):
    seed: Seed
    reference: Family
    value: float
    rounds: Count
    prompts: Count
    pairs: Count
    learning_rate: Rate


class Train(Section):
    """alpha: speed exponent of the reward. rounds of prompts x group rollouts (+ experts: threshold decoding in
    expert_block). Every validate_every rounds the policy is judged on the tune split by its reward; the best is kept.
    """

    seed: Seed
    alpha: Annotated[float, Field(ge=0)]
    reward: Literal["multiplicative", "additive"]
    signal: Literal["correct", "dense"]
    rounds: Count
    prompts: Count
    group: Annotated[int, Field(ge=2)]
    experts: Annotated[int, Field(ge=0)]
    expert_threshold: Share
    expert_block: Count | None
    learning_rate: Rate
    warmup: Annotated[int, Field(ge=0)]
    clip: Positive
    clip_norm: Positive
    epochs: Count
    weighting: Literal["row", "constant"]
    pull: Annotated[float, Field(ge=0)]
    temperature: Annotated[float, Field(ge=1)]
    empty_draw: Literal["forced", "legal"]
    pairs: Count
    rows: Count
    validate_every: Count
    save_every: Count


class Evaluate(Section):
    """seeds: decode seeds. The heuristics are swept over block_lengths (null: the whole canvas) x their one number."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    gate_task: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    block_lengths: tuple[Count | None, ...]
    thresholds: tuple[Share, ...]
    factors: tuple[Positive, ...]
    gammas: tuple[Annotated[float, Field(ge=0)], ...]
    per_step: tuple[Count, ...]


class Case(Section):
    """One matrix cell of transfer or ood: which dLLM, which task."""

    model: Layout
    task: str


class Transfer(Section):
    dream: Case
    long: Case


class Ood(Section):
    near: Case
    far: Case


class Settings(Section):
    """The active profile's sections."""

    data: Data
    models: Models
    pretrain: Pretrain
    domain: Domain
    policy: Policy
    decode: Decode
    distill: Distill
    train: Train
    evaluate: Evaluate
    transfer: Transfer
    ood: Ood

    @model_validator(mode="after")
    def _together(self) -> Settings:
        tasks = self.data.tasks
        cases = [self.transfer.dream, self.transfer.long, self.ood.near, self.ood.far]
        named = {
            "domain.tasks": list(self.domain.tasks), "evaluate.tasks": list(self.evaluate.tasks),
            "evaluate.gate_task": [self.evaluate.gate_task], "pretrain.rows": list(self.pretrain.rows),
            "transfer and ood": [c.task for c in cases],
        }  # fmt: skip
        for where, names in named.items():
            for name in names:
                if name not in tasks:
                    raise ValueError(f"{where}: no task {name!r} in data.tasks; there would be nothing to decode; "
                                     f"use one of {', '.join(tasks)}{nearest(name, list(tasks))}")  # fmt: skip
        for which in ("llada", "dream"):
            model: Model = getattr(self.models, which)
            if model.dtype == "auto" and model.source != "embedded":
                raise ValueError(f"models.{which}.dtype=auto with source {model.source!r}: timing both would load it "
                                 f"twice; say bfloat16 or float32")  # fmt: skip
        if self.evaluate.gate_task not in self.evaluate.tasks:
            raise ValueError(f"evaluate.gate_task {self.evaluate.gate_task!r} is not among evaluate.tasks "
                             f"{list(self.evaluate.tasks)}; the gate would have no figures; add it there")  # fmt: skip
        for name in dict.fromkeys([*self.domain.tasks, *self.evaluate.tasks, *(c.task for c in cases)]):
            self._fits(name, tasks[name].length)
        return self

    def _fits(self, name: str, length: int) -> None:
        block = self.decode.block_length
        if block is not None and length % block:
            fits = [d for d in range(1, length + 1) if length % d == 0]
            raise ValueError(f"decode.block_length={block} does not divide the canvas of {length} ({name}); the last "
                             f"{length % block} positions would never be committed; use one of {fits}")  # fmt: skip
        if self.policy.top_k and block is not None and self.policy.top_k > block:
            raise ValueError(f"policy.top_k={self.policy.top_k} is larger than decode.block_length={block}; a block "
                             f"has no such shortlist; use at most {block}")  # fmt: skip


class Params(Section):
    """The whole file: which profile is active, and all of them."""

    profile: str
    profiles: dict[str, Settings]


def nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def read(path: Path) -> Params:
    """Every profile of params.yaml, checked. SettingsError names each value that cannot work."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise SettingsError(f"{path} cannot be read ({why}); no stage knows its settings without it; run inside the "
                            f"repository, or restore the file") from error  # fmt: skip
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(path, e) for e in error.errors())) from None
    known = list(params.profiles)
    if params.profile not in known:
        raise SettingsError(f"{path}: profile {params.profile!r} is not among the profiles; nothing says how large to "
                            f"run; use one of {', '.join(known)}{nearest(params.profile, known)}")  # fmt: skip
    return params


def load(path: Path) -> Settings:
    """The active profile of params.yaml."""
    params = read(path)
    return params.profiles[params.profile]


def _sentence(path: Path, error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the whole file"
    if error["type"] == "extra_forbidden":
        return (f"{path}: {where} is not a setting; it would be ignored in silence; "
                f"remove it{nearest(str(error['loc'][-1]), _siblings(error['loc']))}")  # fmt: skip
    if error["type"] == "missing":
        return f"{path}: {where} is missing; what params.yaml does not say, DVC cannot track; add it"
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {where}: {text}"
    value = reprlib.repr(error["input"])
    return f"{path}: {where}={value}: {text[0].lower() + text[1:]}; no stage could run with it; change it"


def _siblings(loc: tuple[Any, ...]) -> list[str]:
    """The fields that the model at this place does have."""
    model: Any = Params
    for part in loc[:-1]:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
        elif get_args(model):
            model = get_args(model)[-1]
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
