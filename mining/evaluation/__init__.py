"""Pairs held against ground truth."""
