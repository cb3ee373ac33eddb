"""How each step does its work: one file a step, pure functions on rows."""
