"""The dLLM that a policy belongs to: hidden states of another one of the same width mean something else."""

from __future__ import annotations

from ..core.errors import SettingsError
from ..denoisers.fingerprint import fingerprint_of
from ..denoisers.protocol import Denoiser
from .protocol import Policy


def bound_to(policy: Policy) -> str:
    """The fingerprint of the dLLM that the policy was trained over; "" where it reads no states, or none is on file."""
    return getattr(policy, "denoiser", "") if policy.needs.features != "none" else ""


def require_same_denoiser(policy: Policy, denoiser: Denoiser) -> None:
    """SettingsError if the policy reads hidden states of another dLLM than this one."""
    wanted = bound_to(policy)
    # Of every tensor a few values: not to be read where nobody asks.
    if wanted and wanted != (own := fingerprint_of(denoiser)):
        raise SettingsError(
            f"the policy reads hidden states of the dLLM {wanted}, this one is {own or 'of no known fingerprint'}. "
            f"Decode with the dLLM that the policy was trained over, or train a policy over this one."
        )
