"""Runs of a hundred thousand parts, simulated, and what reads them."""
