"""Experiments that compare rules, tunings and segmentations."""
