"""From YAML to typed settings and their identity."""
