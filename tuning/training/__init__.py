"""What every training has: order, processes, checkpoints, log, schedules."""
