"""The sections together: what no section can check by itself."""

from __future__ import annotations

from pydantic import model_validator

from components.settings.compatibility import check_learning
from components.settings.data import Data, Domain, Model, Models, Pretrain
from components.settings.evaluation import Evaluate, Headroom, Ood, Transfer
from components.settings.policy import Confidence, Decode, Feature, Policy
from components.settings.section import Section, nearest
from components.settings.training import Distill, Train


class Settings(Section):
    """The active profile's sections."""

    data: Data
    models: Models
    pretrain: Pretrain
    headroom: Headroom
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
        asked = [
            self.transfer.dream,
            self.transfer.long,
            self.ood.near,
            self.ood.far,
            self.ood.order,
            *self.headroom.cases,
        ]
        cases = [case for case in asked if case is not None]
        named = {
            "domain.tasks": list(self.domain.tasks),
            "evaluate.tasks": list(self.evaluate.tasks),
            "evaluate.gate_task": [self.evaluate.gate_task],
            "pretrain.rows": [*self.pretrain.rows.llada, *self.pretrain.rows.dream],
            "transfer, ood and headroom": [c.task for c in cases],
        }
        for where, names in named.items():
            for name in names:
                if name not in tasks:
                    raise ValueError(
                        f"{where}: no task {name!r} in data.tasks; there would be nothing to decode; "
                        f"use one of {', '.join(tasks)}{nearest(name, list(tasks))}"
                    )
        for which in ("llada", "dream"):
            model: Model = getattr(self.models, which)
            if model.dtype == "auto" and model.source != "embedded":
                raise ValueError(
                    f"models.{which}.dtype=auto with source {model.source!r}: timing both would load it "
                    f"twice; say bfloat16 or float32"
                )
        if self.evaluate.gate_task not in self.evaluate.tasks:
            raise ValueError(
                f"evaluate.gate_task {self.evaluate.gate_task!r} is not among evaluate.tasks "
                f"{list(self.evaluate.tasks)}; the gate would have no figures; add it there"
            )
        check_learning(
            self.policy, self.decode, self.distill, self.train, max(tasks[name].length for name in self.domain.tasks)
        )
        self._splits(self.policy)
        for name in dict.fromkeys([*self.domain.tasks, *self.evaluate.tasks, *(c.task for c in cases)]):
            self._fits(name, tasks[name].length)
        return self

    def _fits(self, name: str, length: int) -> None:
        block = self.decode.block_length
        if block is not None and length % block:
            fits = [d for d in range(1, length + 1) if length % d == 0]
            raise ValueError(
                f"decode.block_length={block} does not divide the canvas of {length} ({name}); the last "
                f"{length % block} positions would never be committed; use one of {fits}"
            )

    def _splits(self, policy: Confidence | Feature) -> None:
        source = getattr(self.models, self.domain.model).source
        if isinstance(policy, Feature) and source == "embedded" and self.pretrain.width % (2 * policy.heads):
            raise ValueError(
                f"policy.heads={policy.heads} over hidden states of pretrain.width={self.pretrain.width}; "
                f"rotary positions need an even width per head; use heads of which twice the number "
                f"divides it"
            )


class Params(Section):
    """The whole file: which profile is active, and all of them."""

    profile: str
    profiles: dict[str, Settings]
