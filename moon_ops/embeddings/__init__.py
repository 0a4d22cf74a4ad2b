"""The embeddings: an exported encoder's vectors of all items, in the lake, in memory, in Feast and in an index."""
