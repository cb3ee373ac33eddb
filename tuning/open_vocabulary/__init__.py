"""Training the open-vocabulary proposer."""
