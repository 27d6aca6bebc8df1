"""Given weights: other runs, exports, other projects' state dictionaries, fitted to new networks."""
