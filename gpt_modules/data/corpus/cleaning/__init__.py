"""What is left out of a corpus: near-duplicates, and what test sets have too."""
