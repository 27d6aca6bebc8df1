"""Scores beside the training: what scores a checkpoint, and the Ray actor that does it meanwhile."""
