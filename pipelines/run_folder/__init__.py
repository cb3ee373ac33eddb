"""The cells of a run on disk."""
