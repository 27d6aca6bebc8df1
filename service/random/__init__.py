"""Random draws: words by counter (philox), and the values from them (draws). Pure functions."""
