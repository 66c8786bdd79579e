"""For tests of programs that use Smalti: a tiny model, stages without services, an in-memory publisher."""

__all__ = ["clip", "model", "publisher", "stages", "tokenizer", "words"]
