"""What is read from and written to disk, and why it can be believed."""
