"""Words: what a caption is worth, what a label means, what counts as a noun."""
