"""The trainers of the networks: image tokenizer, generator, ranker, refiner and judge."""

__all__ = [
    "entrance",
    "generator",
    "generator_inputs",
    "inputs",
    "judge",
    "ranker",
    "ranker_export",
    "refiner",
    "refiner_inputs",
    "tokenizer",
    "tokenizer_objective",
    "tokenizer_settings",
]
