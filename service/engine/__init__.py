"""The mathematics of training: pure torch and numpy. No Ray, no files, no network, no clock on the wall."""
