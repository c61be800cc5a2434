"""Whether the released policy knows the released dLLM: its pair shifts beside the exact ones, found by probing.

The states are those that the policy visits on a few puzzles of the task it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .demo import CARD, DLLM, FOLDER, POLICY, check

if TYPE_CHECKING:
    from torch import Tensor

    from ..decode.batch import DecodeBatch

PUZZLES = 16


@dataclass(frozen=True)
class ShiftFit:
    """Learned and exact shifts over all ordered pairs of masked positions of some states.

    correlation: Pearson's. unexplained: share of the exact shifts' divergence that the learned ones leave.
    """

    states: int
    pairs: int
    correlation: float
    unexplained: float


def shift_fit(folder: Path = FOLDER) -> ShiftFit:
    """By the exported policy and its dLLM. A state costs one forward, and one per masked position.

    CheckpointError where a file is not the released one. ModuleNotFoundError without the extra onnx.
    """
    import torch

    from ..core.files import read_json
    from ..decode.act import commit
    from ..decode.dependence import decode_by, exact_shifts
    from ..decode.prompts import Prompts
    from ..denoisers import load
    from ..export import OnnxPolicy
    from ..maths.coupling import Coupled
    from ..tasks import build

    card = read_json(folder / CARD, "Install the package again.")
    check(folder, card)
    denoiser, encoder = load(str(folder / DLLM))
    policy = OnnxPolicy(folder / POLICY)
    task = build(card["task"]["kind"], **card["task"]["params"])
    prompts = Prompts.of(task, [task.sample(index, 0) for index in range(PUZZLES)], encoder)
    seen: list[tuple[int, Tensor]] = []

    def choose(batch: DecodeBatch) -> Tensor:
        obs = batch.observation(policy.needs)
        distribution = policy.distribution(obs)
        assert isinstance(distribution, Coupled) and obs.log_odds_BL is not None
        masked_BL, length = obs.masked_BL, obs.masked_BL.shape[1]
        pairs_BLL = masked_BL.unsqueeze(2) & masked_BL.unsqueeze(1) & ~torch.eye(length, dtype=torch.bool)
        now_BLL = obs.log_odds_BL.unsqueeze(1).expand_as(distribution.shift_BLL)
        found = now_BLL, distribution.shift_BLL, exact_shifts(denoiser, batch)
        seen.append((len(batch), torch.stack([x[pairs_BLL].double() for x in found])))
        commit_BL = commit(distribution, distribution.mode(), obs.eligible_BL, True).committed_BL
        assert commit_BL is not None
        return commit_BL

    decode_by(denoiser, prompts.job(None), policy.needs, choose)
    return fitted(sum(states for states, _ in seen), torch.cat([pairs for _, pairs in seen], 1))


def fitted(states: int, pairs_3M: Tensor) -> ShiftFit:
    """pairs_3M: of each pair (i, j) the log-odds of j, its learned and its exact shift by a commit at i."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    from ..trainers.influence import share

    now_M, learned_M, exact_M = pairs_3M
    target_M = torch.sigmoid(now_M + exact_M)
    sums = [float(cross_entropy(now_M + x, target_M, reduction="sum")) for x in (learned_M, 0 * exact_M, exact_M)]
    correlation = float(torch.corrcoef(pairs_3M[1:])[0, 1])
    return ShiftFit(states, len(now_M), correlation, share(*sums))
