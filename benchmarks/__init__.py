"""Measurements: each module is a command that measures and prints its figures."""
