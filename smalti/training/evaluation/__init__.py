"""Measuring a model with the judge, and the pages that report it."""
