"""The data of the library: frozen dataclasses that check themselves.

The legend of axis letters; a tensor's name ends with its axes (``logits_BLV``):

====  =====================================================================
P     prompts
G     members of a group: rollouts of one prompt
B     rows in one forward pass (prompts x members, or what is left of them)
R     rows of a whole job
S     decode steps
N     (row, step) pairs of a job, concatenated without padding; or gathered positions
L     canvas positions, the part that starts as masks
T     sequence positions: padded prompt, then canvas
D     width of the denoiser's hidden states
A     layers of the denoiser whose attention is read
V     vocabulary
K     kept probabilities per position
H     kept past steps
F     input features per position of a policy
====  =====================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

RowState = Mapping[str, Tensor]
"""Anything that a row carries from step to step, each tensor with a leading row axis. The loop only gathers
and concatenates it (key-value caches, a recurrent model's memory, last step's distribution)."""


def _same_rows(owner: str, **named: Tensor | None) -> None:
    if len({t.shape[:1] for t in named.values() if t is not None}) > 1:
        rows = {name: tuple(t.shape) for name, t in named.items() if t is not None}
        raise ValueError(
            f"{owner}: leading axes differ: {rows}. Index all tensors alike, so that row i is the same row everywhere."
        )


@dataclass(frozen=True)
class Canvas:
    """Token ids of whole sequences: the prompt, padded on the left, then the canvas.

    ids_BT: int64. attend_BT: bool, False at padding. start: the first column of the canvas, the same for all rows.
    block_BT: bool, each row's current block, committed positions included; for denoisers with a state.
    """

    ids_BT: Tensor
    attend_BT: Tensor
    start: int
    block_BT: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids_BT.shape != self.attend_BT.shape:
            ids, attend = tuple(self.ids_BT.shape), tuple(self.attend_BT.shape)
            raise ValueError(f"Canvas: ids_BT of shape {ids}, attend_BT of shape {attend}. Give both the same shape.")

    def rows(self, index: Tensor) -> Canvas:
        block_BT = None if self.block_BT is None else self.block_BT[index]
        return Canvas(self.ids_BT[index], self.attend_BT[index], self.start, block_BT)


@dataclass(frozen=True)
class Needs:
    """The fields of the Observation that a policy reads; the loop computes no others.

    where: at which canvas positions the statistics are read: "eligible", "masked" or "all" ("all" also re-predicts
    committed positions, as paper A does). Elsewhere they are zero. top_k: how many probabilities. features:
    the frozen model's hidden states at "canvas" positions or over the whole "sequence". drift: how many past
    values of KL(p_t || p_{t-1}) per position (KLASS). answer: the reference answer, for the teacher.
    statistics: those of ``STATISTICS`` that are read; the token and its confidence always are.
    top_ids: the tokens of the ``top_k`` largest probabilities too. attention: layers of the frozen model whose
    attention between canvas positions is read, negative ones counted from the last. late: ids that the statistics
    leave out, as if they had no probability; they are predicted as ever.
    """

    where: str = "eligible"
    top_k: int = 0
    features: str = "none"
    drift: int = 0
    answer: bool = False
    statistics: Collection[str] = ()
    top_ids: bool = False
    attention: tuple[int, ...] = ()
    late: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention", tuple(sorted(set(self.attention))))
        object.__setattr__(self, "late", tuple(sorted(set(self.late))))
        # In one order and hashable, from a set, a policy's inputs or a JSON list.
        object.__setattr__(self, "statistics", tuple(sorted(set(self.statistics))))
        if self.where not in WHERE or self.features not in FEATURES or not set(self.statistics) <= set(STATISTICS):
            raise ValueError(
                f"Needs: where={self.where!r} must be one of {WHERE}, features={self.features!r} one of "
                f"{FEATURES}, statistics={self.statistics} of {STATISTICS}. Name these."
            )
        if self.top_ids and self.top_k < 1:
            raise ValueError("Needs: top_ids with top_k=0 names no probabilities. Use top_k of at least 1.")

    def __or__(self, other: Needs) -> Needs:
        """The needs of two policies together."""
        return Needs(
            WHERE[max(WHERE.index(self.where), WHERE.index(other.where))],
            max(self.top_k, other.top_k),
            FEATURES[max(FEATURES.index(self.features), FEATURES.index(other.features))],
            max(self.drift, other.drift),
            self.answer or other.answer,
            {*self.statistics, *other.statistics},
            self.top_ids or other.top_ids,
            (*self.attention, *other.attention),
            (*self.late, *other.late),
        )


WHERE = ("eligible", "masked", "all")
FEATURES = ("none", "canvas", "sequence")
STATISTICS = ("log_odds", "margin", "entropy")


@dataclass(frozen=True)
class Observation:
    """The inputs of a policy at one step of one or more rows. Field names are the exported file's input names.

    masked_BL       bool, positions that still hold the mask.
    eligible_BL     bool, subset of masked: what may be chosen now (the current block, a Top-K shortlist).
    step_B          int64, steps this row has taken so far (0 at first).
    length_B        int64, the row's own canvas length; positions from there on are padding and never masked.
    token_BL        int64, the predicted token (greedy, never a forbidden one).
    confidence_BL   float32 in [0, 1], probability of that token.
    log_odds_BL     float32, log p/(1-p) of that token, exact near 1 and clamped to +-LOG_ODDS_LIMIT.
    margin_BL       float32, first minus second probability.
    entropy_BL      float32, nats.
    top_BLK         float32, the K largest probabilities, descending.
    top_ids_BLK     int64, their tokens; equal probabilities by the lowest id, -1 where there are fewer tokens than K.
    attention_BLLA  float32, what position i's own row attends to position j, mean over heads; zero at padding. A row's
                    softmax runs over the prompt too, so that these do not sum to 1. Also in a shifted layout row i is
                    the row of position i itself, which there predicts position i + 1.
    drift_BLH       float32, KL(p_t || p_{t-1}), newest first, +inf where there is no past.
    answer_BL       int64, the reference answer; in training, for the teacher.
    alpha_B         float32, the speed exponent of a policy that is conditioned on it.
    features_BTD    hidden states that predict the positions; T = L if the policy needs the canvas alone.
    attend_BT       bool, True where features_BTD is not padding.
    canvas_start    column of features_BTD at which the canvas starts.
    attention_layers  the layers of attention_BLLA, as the needs named them.
    """

    masked_BL: Tensor
    eligible_BL: Tensor
    step_B: Tensor
    length_B: Tensor
    token_BL: Tensor | None = None
    confidence_BL: Tensor | None = None
    log_odds_BL: Tensor | None = None
    margin_BL: Tensor | None = None
    entropy_BL: Tensor | None = None
    top_BLK: Tensor | None = None
    top_ids_BLK: Tensor | None = None
    attention_BLLA: Tensor | None = None
    drift_BLH: Tensor | None = None
    answer_BL: Tensor | None = None
    alpha_B: Tensor | None = None
    features_BTD: Tensor | None = None
    attend_BT: Tensor | None = None
    canvas_start: int = 0
    attention_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _same_rows("Observation", **self.tensors())
        if self.masked_BL.shape != self.eligible_BL.shape:
            masked, eligible = tuple(self.masked_BL.shape), tuple(self.eligible_BL.shape)
            raise ValueError(f"Observation: masked_BL {masked}, eligible_BL {eligible}. Give both the same shape.")

    def tensors(self) -> dict[str, Tensor]:
        return {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}

    def rows(self, index: Tensor) -> Observation:
        """The rows that a bool mask or an int index picks."""
        return replace(self, **{name: t[index] for name, t in self.tensors().items()})

    @staticmethod
    def concatenate(parts: list[Observation]) -> Observation:
        """Rows of several observations of one layout, one after another."""
        names = parts[0].tensors()
        return replace(parts[0], **{n: torch.cat([getattr(p, n) for p in parts]) for n in names})


@dataclass(frozen=True)
class Action:
    """The choice of a policy.

    drawn_BL      bool, the drawn bits; ``log_prob`` reads these.
    rank_BL       int64, order of the draw from 0 on, -1 where not drawn (only ordered distributions read it).
    committed_BL  bool, what the loop applies: the drawn bits, plus a forced position where a draw was empty. A forced
                  commit is never credited as a drawn one.
    best_B        int64, the position that a forced commit takes, where the draw knows it; only ``commit`` reads it.
    """

    drawn_BL: Tensor
    rank_BL: Tensor | None = None
    committed_BL: Tensor | None = None
    best_B: Tensor | None = None

    def __post_init__(self) -> None:
        _same_rows("Action", drawn_BL=self.drawn_BL, rank_BL=self.rank_BL, committed_BL=self.committed_BL)

    def rows(self, index: Tensor) -> Action:
        def pick(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[index]

        return Action(self.drawn_BL[index], pick(self.rank_BL), pick(self.committed_BL))

    @staticmethod
    def concatenate(parts: list[Action]) -> Action:
        """Rows of several actions of one kind, one after another."""

        def join(tensors: list[Tensor | None]) -> Tensor | None:
            present = [t for t in tensors if t is not None]
            return torch.cat(present) if present else None

        return Action(
            torch.cat([p.drawn_BL for p in parts]),
            join([p.rank_BL for p in parts]),
            join([p.committed_BL for p in parts]),
        )


@dataclass(frozen=True)
class Steps:
    """The recorded (row, step) pairs of a job, ragged: pair n is step ``step_N[n]`` of row ``row_N[n]``.

    log_prob_N is the learning policy's log-probability of the recorded action on the recorded observation, at
    sampling time; for rows that another policy drew (expert steering) the observation's eligible positions are
    widened to all masks.
    """

    row_N: Tensor
    step_N: Tensor
    observation: Observation
    action: Action
    log_prob_N: Tensor

    def __post_init__(self) -> None:
        _same_rows(
            "Steps",
            row_N=self.row_N,
            step_N=self.step_N,
            log_prob_N=self.log_prob_N,
            masked=self.observation.masked_BL,
            drawn=self.action.drawn_BL,
        )

    def pairs(self, index: Tensor) -> Steps:
        """The pairs that a bool mask or an int index picks."""
        observation, action = self.observation.rows(index), self.action.rows(index)
        return Steps(self.row_N[index], self.step_N[index], observation, action, self.log_prob_N[index])

    @staticmethod
    def concatenate(parts: list[Steps]) -> Steps:
        """The pairs of several records, one after another."""
        return Steps(
            torch.cat([p.row_N for p in parts]),
            torch.cat([p.step_N for p in parts]),
            Observation.concatenate([p.observation for p in parts]),
            Action.concatenate([p.action for p in parts]),
            torch.cat([p.log_prob_N for p in parts]),
        )


@dataclass(frozen=True)
class Rollout:
    """The result of a decode job, row i being request i.

    canvas_RL     int64, final token ids; positions past a row's length hold -1, positions never committed the mask id.
    order_RL      int64, the step at which a position was committed (0 = first), -1 if never.
    nfe_R         int64, steps in which the row was unfinished: the number of function evaluations it is charged.
    finished_R    bool, nothing is masked any more.
    policy_R      int64, which of the job's policies drew the row (0 is the learning one).
    forwards      row-forwards that the denoiser really ran, summed over calls.
    useful        row-forwards whose answer a decision depended on for the first time.
    shares        workers, rows in flight of each, and sequence positions in a forward. They change no result in float32
                  and float64; in bfloat16 they may.
    """

    canvas_RL: Tensor
    order_RL: Tensor
    nfe_R: Tensor
    finished_R: Tensor
    policy_R: Tensor
    forwards: int
    useful: int
    steps: Steps | None = None
    shares: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        names = ("canvas_RL", "order_RL", "nfe_R", "finished_R", "policy_R")
        _same_rows("Rollout", **{name: getattr(self, name) for name in names})
