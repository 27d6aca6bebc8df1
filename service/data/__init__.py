"""From shards to batches: index, order, stream, decode, loader. Knows nothing of Ray."""
