"""Training of the demo world's models."""
