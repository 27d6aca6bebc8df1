"""What lies in a run directory, each file read back through a typed model. Knows nothing of Ray."""
