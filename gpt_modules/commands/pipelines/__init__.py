"""A pipeline: stages in order, some of them once and some in every round, and what each of them does."""
