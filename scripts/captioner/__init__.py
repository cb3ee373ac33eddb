"""A stand-in for a server of models on loopback, which knows what to say of each picture."""
