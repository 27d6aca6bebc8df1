"""The mathematics of training: pure torch and numpy, with no Ray, no files, no network."""
