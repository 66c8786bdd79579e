"""A tiny text tokenizer."""

from pathlib import Path

from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from smalti.text.tokenizer import SPECIAL_TOKENS, byte_level, save_tokenizer

_WORDS = ("a", "an", "the", "on", "red", "blue", "cat", "dog", "fox", "car", "avocado", "armchair", "balloon")


def tiny_tokenizer_files(folder: Path) -> int:
    """Writes `tokenizer.json`, `vocab.json` and `merges.txt`, and returns the size of the vocabulary.

    The vocabulary has the special tokens, the 256 bytes, and the merges of a few common words.
    """
    tokens = (*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet()))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        merged = "Ġ"  # The byte-level symbol of the space before a word.
        for letter in word:
            if merged + letter not in vocabulary:
                vocabulary[merged + letter] = len(vocabulary)
                merges.append((merged, letter))
            merged += letter
    save_tokenizer(byte_level(BPE(vocab=vocabulary, merges=merges)), folder)
    return len(vocabulary)
