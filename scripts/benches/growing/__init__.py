"""Benches of sets that grow."""
