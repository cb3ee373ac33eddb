"""Models prompted with a text that check a mined pair: a file for each kind."""
