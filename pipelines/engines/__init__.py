"""Where cells are made: in this process, on Ray, on Beam."""
