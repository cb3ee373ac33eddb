"""Runs that are killed and resumed, and their bytes compared."""
