"""Who chooses the positions: heuristics, the confidence transformer (paper A), the feature head (paper B)."""
