"""Drawing the demo world."""
