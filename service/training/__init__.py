"""The training itself: curriculum, random draws, step, state, checkpoints, the worker's loop."""
