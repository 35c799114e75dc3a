"""How a decoder speaks: one step, its cache of keys and values, sampling and beam search."""
