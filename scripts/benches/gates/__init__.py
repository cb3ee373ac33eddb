"""Ratios that are kept: what a measure may fall to before somebody has to look."""
