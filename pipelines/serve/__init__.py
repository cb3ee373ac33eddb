"""Segmentation as a web page."""
