"""Pages, sheets and tables of a finished run."""
