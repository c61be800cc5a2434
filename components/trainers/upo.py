"""Paper B (arXiv 2510.05725, UPO) as presets of the shared loop: policy shape, objective, plan and reference policy.

One position per step, so that the number of steps is fixed and alpha is 0; the reward is the dense score; the surrogate
is weighted by 1/L; the divergence from the reference is in closed form per step. The three realisations:

===================  ===========================  ==========================================  ========================
max_confidence       all eligible positions       CE to max-confidence, ties split evenly     taught by it first
softmax_confidence   all eligible positions       KL to softmax(confidence / .05)             taught by it first
top_k                the 5 most confident ones    KL to uniform among them                    random, which is uniform
===================  ===========================  ==========================================  ========================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from components.policies.feature import FeatureShape
from components.policies.heuristics import MaxConfidence, SoftmaxConfidence, TopKRandom
from components.policies.protocol import Policy
from components.trainers.plan import Objective, Plan


@dataclass(frozen=True)
class Preset:
    """A training run but for its denoiser and prompts: ``FeaturePolicy(shape)``, taught by ``reference`` first where
    ``taught``, then ``reinforce`` with it."""

    shape: FeatureShape
    objective: Objective
    plan: Plan
    reference: Policy
    taught: bool


def preset(name: str, features: int, heads: int = 4, mlp_width: int = 256, record_share: float = 1.0) -> Preset:
    """For hidden states of width ``features`` (LLaDA-8B: 4096, heads 32, mlp_width 12288). record_share: share of
    the steps that is stored and learned from (Algorithm 2), for long canvases."""
    found = PRESETS[name]
    shape = replace(found.shape, features=features, heads=heads, mlp_width=mlp_width)
    return replace(found, shape=shape, objective=replace(found.objective, record_share=record_share))


# 3,500 optimizer steps of 16 epochs on 24 prompts x 6 members; the learning rate is constant after .056 of them.
_PLAN = Plan(
    iterations=219,
    prompts=24,
    group=6,
    learning_rate=3e-6,
    seed=0,
    block_length=None,
    warmup=12,
    min_lr_ratio=1.0,
    weight_decay=0.1,
    clip_norm=0.2,
    temperature=0.8,
    anneal=False,
)
_OBJECTIVE = Objective(alpha=0.0, signal="dense", clip_eps=0.5, num_epochs=16, weighting="constant", kl_coef=1e-4)
_SHAPE = FeatureShape(features=4096, heads=32, mlp_width=12288)

PRESETS = {
    "max_confidence": Preset(_SHAPE, replace(_OBJECTIVE, divergence="ce"), _PLAN, MaxConfidence(), taught=True),
    "softmax_confidence": Preset(_SHAPE, _OBJECTIVE, _PLAN, SoftmaxConfidence(0.05), taught=True),
    "top_k": Preset(replace(_SHAPE, shortlist=5), _OBJECTIVE, _PLAN, TopKRandom(5), taught=False),
}
