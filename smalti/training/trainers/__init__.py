"""The trainers of a model's parts: image tokenizer, generator, ranker."""
