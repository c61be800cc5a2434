"""What stages share: the workspace, opened models, progress, run files."""
