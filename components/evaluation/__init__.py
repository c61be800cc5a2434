"""Policies x prompts x seeds: results with intervals, headroom, the promotion gate."""
