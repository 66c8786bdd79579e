"""The trainers of the networks: image tokenizer, generator, ranker and judge."""

__all__ = [
    "entrance",
    "generator",
    "generator_inputs",
    "inputs",
    "judge",
    "ranker",
    "ranker_export",
    "tokenizer",
    "tokenizer_objective",
    "tokenizer_settings",
]
