"""Gradient clipping that refuses a loss or a gradient that is not finite."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..core.errors import SettingsError


def clip_finite(model: nn.Module, limit: float, loss: float, where: str) -> float:
    """Clip the gradients of ``model`` to the norm ``limit``; return their norm before that.

    SettingsError where the loss or the norm is NaN or infinite: the gradients are left as they are, and the caller
    takes no step. where: names the step in the message, such as "iteration 3".
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    total = get_total_norm(list(gradients.values()))
    norm = float(total)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        bad = next((name for name, g in gradients.items() if not bool(g.isfinite().all())), None)
        what = f"the gradient of {bad} is not finite" if bad else "the gradients are finite one by one"
        raise SettingsError(
            f"{where}: the loss is {loss:g}, the gradient's norm {norm:g}, and {what}. No weight was changed by this "
            f"step. Lower the learning rate, or check the rewards and the dLLM's logits of this iteration."
        )
    clip_grads_with_norm_(model.parameters(), limit, total)
    return norm
