"""Mask proposers: a file for each library."""
