"""Training of the demo world's MaskFormer."""
