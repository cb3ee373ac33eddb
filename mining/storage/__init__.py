"""Bytes at a path, wherever it lies. Nothing here knows of images."""
