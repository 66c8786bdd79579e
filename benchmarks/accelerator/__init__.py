"""`make accelerator`: what a GPU or TPU does with Smalti, checked and timed in a few minutes."""
