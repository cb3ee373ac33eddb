"""In what order and where the steps run: the pipeline, the run folder, the engines, the command line."""
