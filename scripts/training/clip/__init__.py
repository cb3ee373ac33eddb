"""Training of the demo world's CLIP."""
