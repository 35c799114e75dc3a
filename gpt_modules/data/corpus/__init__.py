"""Long text as tokens: documents, encoding on all cores, shards on disk, windows and mixtures."""
