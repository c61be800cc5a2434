"""The few errors of the library. Each is also the built-in that a caller would expect.

Every message has three clauses: what was wrong with which value; why it matters; what to do.
"""


class SettingsError(ValueError):
    """A setting, or a combination of settings, cannot work."""


class DataError(ValueError):
    """A prompt, a dataset or a file is not what it must be."""


class CheckpointError(RuntimeError):
    """A model or a checkpoint does not load to what it claims to be."""


class ParityError(RuntimeError):
    """Two things that must compute the same do not."""


class PromotionRefused(RuntimeError):
    """A policy did not pass the gate."""
