"""Segmentation of images and of benchmarks as commands."""
