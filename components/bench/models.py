"""A random dLLM of a given size, for benchmarks without a checkpoint."""

from __future__ import annotations

import torch

from components.denoisers import Encoder, TransformerDenoiser, embedded

SHARPNESS = 8.0


def random_denoiser(
    width: int = 128, layers: int = 4, heads: int = 4, positions: int = 1024, vocabulary: int = 68, seed: int = 0,
    dtype: torch.dtype = torch.float32, alphabet: str | None = None,
) -> tuple[TransformerDenoiser, Encoder]:  # fmt: skip
    """Its head is scaled up, so that it is sure of some positions and unsure of others, as a trained one is.

    vocabulary: width of the logits; what the alphabet (by default ASCII from "!" on) does not reach is forbidden.
    """
    letters = alphabet or "".join(chr(33 + i) for i in range(min(vocabulary - 4, 94)))
    denoiser, encoder = embedded.build("llada", letters, width, layers, heads, 4 * width, positions, seed)
    if vocabulary > denoiser.vocabulary:
        wide = denoiser.model.resize_token_embeddings(vocabulary, mean_resizing=False)
        assert wide.weight.shape[0] == vocabulary
    denoiser.model.lm_head.weight.data *= SHARPNESS
    return TransformerDenoiser(
        denoiser.model.to(dtype), denoiser.mask_id, len(encoder.tokenizer), denoiser.shifted
    ), encoder
