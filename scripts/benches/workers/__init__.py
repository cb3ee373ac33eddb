"""What several workers on one machine gain, and what several runs beside each other cost."""
