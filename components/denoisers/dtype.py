"""Which weight type suits this machine: bfloat16 where its processor multiplies it natively, float32 elsewhere.

The policy and all statistics stay in float32 either way. The choice is made once, when the checkpoint is made, and
recorded beside it, so that every later stage and every resumed run uses the same arithmetic. It is read from the
processor and not measured: a measurement under load chose the other type, and every figure differed.
"""

from __future__ import annotations

import torch

# Names of torch.cpu.get_capabilities(): Intel's matrix unit, x86's vectors, Arm's vectors.
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")


def native_dtype() -> str:
    """Return "bfloat16" or "float32": the type that this machine's processor multiplies fastest."""
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if any(capabilities.get(name) for name in BFLOAT16) else "float32"
