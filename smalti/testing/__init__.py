"""Parts for the tests of programs that use Smalti: a tiny model, fake stages, and a store and a publisher in memory.

`MemoryStore` is an object store in memory. The other parts are in modules, since they need libraries of an extra:

* `smalti.testing.model`: `tiny_model` writes the folder of a model with random weights.
* `smalti.testing.stages`: `FakeStages` does the work of the stages without computing.
* `smalti.testing.publisher`: `MemoryPublisher` keeps messages in a list.
* `smalti.testing.clip`, `tokenizer`, `words`: the parts of the tiny model.
"""

from smalti.storage import MemoryStore

__all__ = ["MemoryStore", "clip", "model", "publisher", "stages", "tokenizer", "words"]
