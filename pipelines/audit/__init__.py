"""Audits of a finished run: how many of its pairs are right, and how sure each pair is."""
