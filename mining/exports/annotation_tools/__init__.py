"""Pairs for tools in which people judge masks and draw them anew; `maskmine import-verdicts` reads their answers."""
