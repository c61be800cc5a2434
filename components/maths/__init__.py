"""Pure functions on tensors, each with its formula and its source. Imports torch, ``types`` and nothing above."""
