"""Paper A (arXiv 2512.09106) as presets of the shared loop: policy shape, objective and plan, with the published
hyperparameters, and ours beside them.

Names: "paper" is the semi-autoregressive setting (blocks of 32), "full" full diffusion, "steered" full diffusion with
one expert trajectory per group, "dpls" the other action distribution, "default" this library's own starting point,
which ``params.yaml`` tunes further.
``expert`` is the steering policy of "steered". What the release does and we do not is listed in docs/papers.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from components.policies.confidence import PAPER, Shape
from components.policies.heuristics import Threshold
from components.policies.protocol import Policy
from components.trainers.plan import Objective, Plan


@dataclass(frozen=True)
class Preset:
    """A training run but for its denoiser and prompts: ``ConfidencePolicy(shape)``, then ``reinforce``."""

    shape: Shape
    objective: Objective
    plan: Plan
    expert: Policy | None = None


def preset(name: str, alpha: float, features: int = 0) -> Preset:
    """``alpha``: 10, 3, 1, 0.3 or 0 in the paper, one training each. ``features``: width of the frozen model's hidden
    states, read by "default" alone (0: not at all).

    936 iterations are one epoch over 14,973 prompts, 16 prompts x 8 members and 2 optimizer steps per iteration.
    """
    found = PRESETS[name]
    shape = replace(found.shape, features=features) if name == "default" else found.shape
    return replace(found, shape=shape, objective=replace(found.objective, alpha=alpha))


_OBJECTIVE = Objective(reward="multiplicative", signal="correct", clip_eps=0.5, num_epochs=2, weighting="row")
_PLAN = Plan(
    iterations=936,
    prompts=16,
    group=8,
    learning_rate=3e-5,
    seed=123,
    block_length=32,
    warmup=100,
    min_lr_ratio=0.0,
    weight_decay=0.1,
    clip_norm=0.2,
    force_commit=False,
    step_limit="block",
    rollout_rows=128,
)
_STEERED = replace(_PLAN, block_length=None, experts=1, expert_block=32)

PRESETS = {
    "paper": Preset(PAPER, _OBJECTIVE, _PLAN),
    "full": Preset(PAPER, _OBJECTIVE, replace(_PLAN, block_length=None)),
    "steered": Preset(PAPER, replace(_OBJECTIVE, clip_eps=0.2), _STEERED, Threshold(0.9)),
    "dpls": Preset(replace(PAPER, action="dpls"), _OBJECTIVE, _PLAN),
    "default": Preset(
        Shape(), Objective(), Plan(iterations=150, prompts=32, group=8, learning_rate=5e-4, seed=0, block_length=None)
    ),
}
