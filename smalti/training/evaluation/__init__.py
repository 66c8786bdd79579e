"""Evaluation: measuring a model with the judge, and the pages that report it."""

__all__ = ["measuring", "model_card", "page", "questions", "sweep"]
