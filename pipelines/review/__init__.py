"""Pairs of a run, judged by people on a web page."""
