"""The job that eats the shards: mask prompts, objective, training, evaluation."""
