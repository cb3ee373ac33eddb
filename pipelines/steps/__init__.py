"""The grid of a run: steps × parts."""
