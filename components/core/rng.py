"""Randomness with an address: every number is a function of coordinates, never of what was drawn before it.

``generator(seed, "pretrain", step)`` gives a torch generator; ``Noise`` gives the decode loop's uniforms as a
vectorised hash of (run seed, prompt, member, step, position), so that a row's draws depend neither on the batch it
sits in nor on its neighbours. The library never touches a global generator.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_of(*address: object) -> int:
    """A 63-bit seed for an address such as ``(run_seed, "rollout", iteration)``, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, address)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*address: object) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*address))


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors; multiplication wraps, and the shifts are made logical by a mask."""
    x = x + _GOLDEN
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX_2
    return x ^ ((x >> 31) & (2**33 - 1))


def row_keys(seed: int, prompt_R: Tensor, member_R: Tensor) -> Tensor:
    """One int64 key per row from (run seed, prompt, member)."""
    start = torch.full_like(prompt_R, _signed(seed_of("noise", seed) << 1))
    return mix(mix(start ^ prompt_R) + member_R)


@dataclass(frozen=True)
class Noise:
    """The uniforms of one step: ``key_B`` names the rows, ``step_B`` their steps (both int64)."""

    key_B: Tensor
    step_B: Tensor

    def uniform(self, stream: int, length: int) -> Tensor:
        """float64 (B, length), strictly inside (0, 1). Draws of different streams are independent."""
        row_B1 = mix(mix(self.key_B + self.step_B * 64 + stream)).unsqueeze(1)
        position_L = torch.arange(length, dtype=torch.int64, device=row_B1.device)
        bits_BL = mix(row_B1 ^ mix(position_L)) >> 11 & (2**53 - 1)
        return (bits_BL.double() + 0.5) * 2.0**-53

    def gumbel(self, stream: int, length: int) -> Tensor:
        """float64 (B, length), standard Gumbel."""
        return -torch.log(-torch.log(self.uniform(stream, length)))
