"""Tuning CLIP on mask–noun pairs."""
