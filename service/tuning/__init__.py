"""Sweeps: many runs that differ in some settings, tried out by Ray Tune."""
