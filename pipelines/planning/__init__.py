"""Which images a run has, cut into parts."""
