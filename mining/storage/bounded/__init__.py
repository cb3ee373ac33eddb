"""What strangers may hand in, read within bounds of length, depth, memory and time."""
