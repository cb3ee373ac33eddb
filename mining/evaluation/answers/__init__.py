"""What people answered in an annotation tool: verdicts on pairs, and masks and nouns in place of wrong ones."""
