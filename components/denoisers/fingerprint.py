"""Which dLLM it is, as a short text: a policy that reads hidden states belongs to one set of weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

FACTS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rope_parameters")
VALUES = 64  # of each tensor


def fingerprint(model: Any) -> str:
    """A hash of the config's shape and the first values of every tensor, rounded to bfloat16: the same whatever type
    the weights are loaded in, and another one after one more training step."""
    known = getattr(model, "split_fingerprint", None)
    if known is not None:
        return known
    digest = hashlib.sha256()
    for name in FACTS:
        digest.update(json.dumps([name, getattr(model.config, name, None)], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.named_parameters()):
        values = tensor.detach().flatten()[:VALUES].to(torch.bfloat16).view(torch.int16).cpu()
        digest.update(f"{name}{tuple(tensor.shape)}{values.tolist()}".encode())
    return digest.hexdigest()[:16]


def fingerprint_of(denoiser: object) -> str:
    """The denoiser's ``fingerprint``, or "" where a class has none."""
    return getattr(denoiser, "fingerprint", "")
