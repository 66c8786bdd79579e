"""What every training run shares: settings, steps, checkpoints, logs, and the loop itself."""
