"""Sections of the policy: its shape, and how it decodes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .section import NUMBER, Count, Finite, Natural, NonNegative, Positive, Section, Size


class Confidence(Section):
    """Paper A's policy, see ``components.policies.confidence.Shape``. hidden_states: whether it reads the dLLM's."""

    kind: Literal["confidence"]
    inputs: Annotated[
        tuple[Literal["confidence", "log_odds", "entropy", "margin", "bound", "top"], ...], Field(min_length=1)
    ]
    top_k: Natural
    hidden_states: bool
    width: Size
    heads: Size
    mlp_width: Size
    period: Positive
    bias: Finite
    where: Literal["eligible", "masked", "all"]
    action: Literal["bernoulli", "dpls", "categorical"]
    rounded: bool

    @property
    def shortlist(self) -> int:
        """Number of most confident positions to draw from; 0: all."""
        return 0

    @model_validator(mode="after")
    def _agrees(self) -> Confidence:
        if ("top" in self.inputs) != (self.top_k > 0):
            raise ValueError(
                f"inputs {list(self.inputs)} with top_k={self.top_k} do not agree. "
                f"Name top and give top_k of at least 1, or neither."
            )
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} with heads={self.heads}: rotary positions need an even width per head. "
                f"Use a multiple of {2 * self.heads}."
            )
        return self


class Feature(Section):
    """Paper B's policy, see ``components.policies.feature.FeatureShape``: a transformer block as wide as the frozen
    model, then an MLP of ``hidden`` layers over its output, the top_k probabilities, the mask and the block flag. One
    position is drawn, among the ``shortlist`` most confident ones (0: among all)."""

    kind: Literal["feature"]
    heads: Size
    mlp_width: Size
    hidden: Size
    top_k: Count
    shortlist: Natural

    @property
    def action(self) -> Literal["categorical"]:
        return "categorical"


class Coupled(Section):
    """Our policy, which reads pairs of positions; see ``components.policies.coupled.CoupledShape``.

    positions: longest canvas with absolute positions, 0 for none. hidden_states: whether it reads the dLLM's.
    pair_shifts: false leaves the shifts out.
    """

    kind: Literal["coupled"]
    top_k: Count
    width: Size
    heads: Size
    mlp_width: Size
    blocks: Size
    pair_width: Size
    pair_shifts: bool
    attention: tuple[int, ...]
    offsets: Natural
    positions: Natural
    hidden_states: bool
    action: Literal["accept", "coupled", "categorical"]
    kappa: Positive
    tau: Finite
    cost: NonNegative
    mix: Annotated[float, Field(gt=0, lt=1), NUMBER]

    @property
    def shortlist(self) -> int:
        """Number of most confident positions to draw from; 0: all."""
        return 0

    @model_validator(mode="after")
    def _agrees(self) -> Coupled:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} does not split into heads={self.heads}. Use a multiple.")
        return self


Policy = Annotated[Confidence | Feature | Coupled, Field(discriminator="kind")]


class Decode(Section):
    """Decoding of the policy.

    block_length: null for full diffusion. frontier: only the first so many masks of the block are eligible; null: all.
    end_of_text: a row ends when the end of its text is committed and nothing before it is missing; what is behind costs
    no forward pass, for rules too. temperature, scale: test-time factors of the policy (tau_pi, beta).
    alpha: the speed exponent to serve, of a policy that is trained for several; else null. choose: in validation and
    serving. cache: of keys and values in the frozen dLLM, approximate (``components.denoisers.cached``); also in
    training, so that the policy learns on the logits that it is served with.
    """

    block_length: Size | None
    frontier: Size | None
    end_of_text: bool
    temperature: Positive
    scale: Positive
    alpha: NonNegative | None
    choose: Literal["mode", "sample"]
    cache: Literal["none", "prefix", "dual"]
