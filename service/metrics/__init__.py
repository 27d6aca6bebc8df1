"""How good images are: features of images, and scores of sets of them. Knows nothing of Ray."""
