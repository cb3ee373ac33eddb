"""Inputs that failed once, run as a user would: `shared/faults` beside the checkout."""
