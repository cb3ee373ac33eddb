"""One file for each model library; nothing heavy is imported before `open()`."""
