"""Faults of the input or the settings, which a person can mend: one line saying what, where and what to do."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave is wrong (exit code 2). The message is one line with a remedy."""


class IncompleteError(Exception):
    """The run cannot go on now but nothing is lost (exit code 4): mend the cause and run the same command again."""


class OtherPlanError(Exception):
    """The output folder belongs to another plan (exit code 5)."""
