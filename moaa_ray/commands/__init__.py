"""The commands of `moaa` that are more than a call; cli.py puts them together."""
