"""Where the service runs: the local stack, and what a cluster needs."""
