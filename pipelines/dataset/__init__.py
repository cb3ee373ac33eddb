"""The finished run: published, described, verified."""
