"""Rows of the fault matrix about batches."""

from faults.rows.batches import bad_input, beside, gateway, outside, poison, states, workers

__all__ = ["bad_input", "beside", "gateway", "outside", "poison", "states", "workers"]
