"""Measuring models on the demo world."""
