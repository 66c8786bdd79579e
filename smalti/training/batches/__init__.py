"""Batches: what a step of training is given."""

__all__ = [
    "batch",
    "captioned",
    "clip_tokenizer",
    "pairs",
    "random_numbers",
    "reconstruction",
    "second_pass",
    "sources",
    "text_tokenizer",
]
