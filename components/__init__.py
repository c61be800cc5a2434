"""Learned unmasking policies for masked diffusion language models: the library (no Prefect, no DVC in here)."""
