"""Data that ships with the package or is made in code."""
