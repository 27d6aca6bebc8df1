"""Random draws: words by counter (philox), and what is made of them (draws). Pure functions."""
