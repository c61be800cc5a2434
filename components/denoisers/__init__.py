"""The frozen dLLM seen through one small interface; every quirk of a model family ends here."""

from components.denoisers.cached import with_cache
from components.denoisers.check import check_denoiser
from components.denoisers.encoder import Encoder
from components.denoisers.loading import LoadedDenoiser, load
from components.denoisers.protocol import Denoiser
from components.denoisers.transformer import TransformerDenoiser

__all__ = ["Denoiser", "Encoder", "LoadedDenoiser", "TransformerDenoiser", "check_denoiser", "load", "with_cache"]
