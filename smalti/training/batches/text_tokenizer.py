"""The text tokenizer of a model that is trained from scratch: byte-level BPE, learned from its captions."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import models, pre_tokenizers, trainers

from smalti.text.normalizer import TextNormalizer
from smalti.text.tokenizer import SPECIAL_TOKENS, TextTokenizer, byte_level, save_tokenizer

MIN_VOCABULARY_SIZE = len(SPECIAL_TOKENS) + 256


def make_tokenizer(captions: Iterable[str], vocabulary_size: int, folder: Path) -> None:
    """Writes the files of a tokenizer: the special tokens with DALL·E mini's ids, the 256 bytes, and merges.

    Args:
        captions: text from which the merges are learned; it is normalized in the same way as prompts.
        vocabulary_size: maximal number of ids; captions with few words give fewer.
        folder: receives `tokenizer.json`, `vocab.json` and `merges.txt`.
    """
    normalize = TextNormalizer()
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator((normalize(caption) for caption in captions), trainer)
    # Rebuilt from its merges, so that its file equals that of any other byte-level tokenizer.
    tokenizer.model.save(str(folder))
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    save_tokenizer(byte_level(models.BPE.from_file(str(vocabulary), str(merges))), folder)


def load_tokenizer(folder: Path, max_text_length: int) -> TextTokenizer:
    """Loads the tokenizer of a run; raises `ModelError` if it is missing or damaged."""
    return TextTokenizer.load(folder, max_text_length=max_text_length, normalize=True)
