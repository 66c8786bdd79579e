"""The text tokenizer of a ranker: open_clip's own, with merges that are made from the captions.

open_clip's tokenizer brings 49,408 words. A small model would spend most of its weights on words that none of its
captions has.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from smalti.models.clip import write_merges

# Not before `smalti.models.clip`, which makes it importable.
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn  # isort: skip

BYTES = 512
"""Each byte is a word twice: within a word, and at its end."""
SPECIAL = 2
MIN_VOCABULARY_SIZE = BYTES + SPECIAL
_END_OF_WORD = "</w>"
# Where open_clip's tokenizer splits, but for its special tokens, which no caption has.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def make_merges(captions: Iterable[str], vocabulary_size: int, path: Path) -> None:
    """Writes a file of merges for open_clip's tokenizer; equal captions give equal bytes.

    Args:
        captions: what to learn the merges from.
        vocabulary_size: how many ids there are at most; fewer when the captions have not so many words.
        path: the file to write.
    """
    clean = get_clean_fn("lower")
    tokenizer = Tokenizer(BPE(end_of_word_suffix=_END_OF_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=_END_OF_WORD,
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator((clean(caption) for caption in captions), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    write_merges(path, (tuple(pair) for pair in merges[: vocabulary_size - MIN_VOCABULARY_SIZE]))


def load_merges(path: Path, context_length: int) -> SimpleTokenizer:
    """Loads the tokenizer of a file of merges."""
    return SimpleTokenizer(bpe_path=str(path), context_length=context_length)


def vocabulary_of(tokenizer: SimpleTokenizer) -> int:
    """Returns how many rows a table needs that has one for each id; the end of a text has the highest."""
    return tokenizer.eot_token_id + 1
