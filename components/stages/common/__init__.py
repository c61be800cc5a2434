"""Shared parts of the stages: the workspace, opened models, progress, run files."""
