"""The frozen dLLM seen through one small interface; every quirk of a model family ends here."""

from components.denoisers.cached import with_cache
from components.denoisers.loading import Encoder, load
from components.denoisers.protocol import Denoiser
from components.denoisers.transformer import TransformerDenoiser

__all__ = ["Denoiser", "Encoder", "TransformerDenoiser", "load", "with_cache"]
