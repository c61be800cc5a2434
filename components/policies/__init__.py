"""Policies: heuristics, the confidence transformer (paper A), the feature head (paper B), the coupled policy."""
