"""Evaluation: measuring a model with the judge, and the pages that report it."""

__all__ = ["features", "goals", "measuring", "model_card", "page", "questions", "sweep"]
