"""Training of the demo world's open-vocabulary head."""
