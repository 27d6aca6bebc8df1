"""Images to shards: sources, packing. Shards to batches: index, order, stream, decode, loader."""
