"""Rows by name and from files: what a procedure's examples are read from."""
