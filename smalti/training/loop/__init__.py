"""The part of training that all trainers share: settings, steps, checkpoints, log, and the loop."""

__all__ = ["log", "monitor", "optimizers", "run_folder", "settings", "sheets", "step", "train", "trainee"]
