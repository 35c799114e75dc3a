"""Tasks drawn from families, for meta-learning: a few examples to adapt on, others to judge by."""
