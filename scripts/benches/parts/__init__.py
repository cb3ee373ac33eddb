"""Where the time of a part goes, stage by stage."""
