"""A hub on loopback, and repositories laid out as the real ones are."""
