"""Scores beside the training: the scorer of checkpoints, and the Ray actor that runs it."""
