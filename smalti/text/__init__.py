"""Prompts as text: normalising, tokenizing, and rewording for models that know a small vocabulary."""

__all__ = ["normalizer", "rewording", "tokenizer", "vocabulary"]
