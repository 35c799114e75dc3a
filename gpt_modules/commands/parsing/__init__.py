"""The words of `gpt fit` and its like as one recipe, and what is wrong with it in one line."""
