"""The `gpt` command's rooms: one file a command."""
