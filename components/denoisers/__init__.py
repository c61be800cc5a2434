"""The frozen dLLM seen through one small interface; every quirk of a model family ends here."""

from .cached import with_cache
from .check import check_denoiser
from .encoder import Encoder
from .loading import LoadedDenoiser, load
from .protocol import Denoiser
from .transformer import TransformerDenoiser

__all__ = ["Denoiser", "Encoder", "LoadedDenoiser", "TransformerDenoiser", "check_denoiser", "load", "with_cache"]
