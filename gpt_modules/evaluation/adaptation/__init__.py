"""Ways to learn a new task from a few examples, compared on the same episodes."""
