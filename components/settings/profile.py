"""The sections together, and the checks between them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from .compatibility import check_attention, check_learning, check_letters, check_shares
from .data import Data, Domain, Model, Pretrain
from .evaluation import Case, Cases, Evaluate, Headroom, Sweep, Variants
from .policy import Decode, Feature, Policy
from .section import Name, Section, nearest
from .training import Distill, Influence, Train


class Settings(Section):
    """params.yaml: the profile's name, which its output folder has too, and the sections."""

    profile: Name
    data: Data
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    pretrain: Pretrain
    headroom: Headroom
    domain: Domain
    policy: Policy
    decode: Decode
    influence: Influence
    distill: Distill
    train: Train
    sweep: Sweep
    variants: Variants
    evaluate: Evaluate
    transfer: Cases
    ood: Cases

    @property
    def cases(self) -> dict[str, Case]:
        """The cases of transfer, ood and headroom by their path in the file."""
        groups = {"transfer": self.transfer, "ood": self.ood, "headroom.cases": self.headroom.cases}
        return {f"{group}.{name}": case for group, cases in groups.items() for name, case in cases.items()}

    @model_validator(mode="after")
    def _together(self) -> Settings:
        tasks = self.data.tasks
        self._names_exist()
        if self.evaluate.gate_task not in self.evaluate.tasks:
            raise ValueError(
                f"evaluate.gate_task={self.evaluate.gate_task} is not among evaluate.tasks "
                f"{list(self.evaluate.tasks)}. Add it there."
            )
        longest = max(tasks[name].length for name in self.domain.tasks)
        check_learning(self.policy, self.decode, self.distill, self.train, longest)
        self._splits(self.policy)
        embedded = self.models[self.domain.model].source == "embedded"
        named = {"distill.reference": [self.distill.reference], "train.reference": [self.train.reference]}
        layers = self.pretrain.layers if embedded else None
        check_attention(self.policy, self.decode, layers, named | {"sweep.rules": self.sweep.rules})
        check_shares(self.domain.tasks, {"train": self.data.counts.train, "tune": self.data.counts.tune})
        decoded = [*self.domain.tasks, *self.evaluate.tasks, *(case.task for case in self.cases.values())]
        for name in dict.fromkeys(decoded):
            self._fits("decode.block_length", self.decode.block_length, name)
        for name in self.evaluate.tasks:
            for number, block in enumerate(self.variants.blocks):
                self._fits(f"variants.blocks.{number}", block, name)
        own = {(self.domain.model, name) for name in (*self.domain.tasks, *self.evaluate.tasks)}
        check_letters(self.data, self.models, own | {(case.model, case.task) for case in self.cases.values()})
        return self

    def _names_exist(self) -> None:
        """Every task and model that a section names is defined."""
        cases = self.cases.items()
        rows = ((f"models.{name}.rows", task) for name, model in self.models.items() for task in model.rows)
        named_tasks = [
            *(("domain.tasks", name) for name in self.domain.tasks),
            *(("evaluate.tasks", name) for name in self.evaluate.tasks),
            *rows,
            *((where, case.task) for where, case in cases),
        ]
        named_models = [("domain.model", self.domain.model), *((where, case.model) for where, case in cases)]
        tables = (("task", "data.tasks", self.data.tasks, named_tasks), ("model", "models", self.models, named_models))
        for what, table, known, named in tables:
            for where, name in named:
                if name not in known:
                    raise ValueError(
                        f"{where}: no {what} {name!r} in {table}{nearest(name, list(known))}. "
                        f"Use one of {', '.join(known)}, or add it there."
                    )

    def _fits(self, where: str, block: int | None, name: str) -> None:
        length = self.data.tasks[name].length
        if block is not None and length % block:
            fits = [d for d in range(1, length + 1) if length % d == 0]
            raise ValueError(f"{where}={block} does not divide the canvas of {length} ({name}). Use one of {fits}.")

    def _splits(self, policy: Policy) -> None:
        source = self.models[self.domain.model].source
        if isinstance(policy, Feature) and source == "embedded" and self.pretrain.width % (2 * policy.heads):
            raise ValueError(
                f"policy.heads={policy.heads} over hidden states of pretrain.width={self.pretrain.width}: rotary "
                f"positions need an even width per head. Use a number whose double divides the width."
            )
