"""Whether a training falls apart: signals are measured, a detector judges them, a response is chosen."""
