"""The judge: a classifier that measures what a model draws."""
