"""From bytes to pixels to crops."""
