"""Does a training fall apart? Signals are measured, a detector judges them, a response is chosen."""
