"""Where the time of a training goes, and how far the machine would let it fall."""
