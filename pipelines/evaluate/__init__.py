"""A finished run held against ground truth and benchmarks."""
