"""How good the pictures are: features of images, and scores of sets of them. Knows nothing of Ray."""
