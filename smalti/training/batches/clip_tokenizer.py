"""The text tokenizer of a ranker: open_clip's own, with merges learned from the captions.

open_clip's tokenizer has 49,408 ids. A small model would spend most of its weights on words that no caption uses.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from smalti.errors import CheckpointError
from smalti.models.clip import write_merges
from smalti.models.open_clip_models import SimpleTokenizer, get_clean_fn

BYTES = 512
"""Each byte has two ids: inside a word, and at the end of one."""
SPECIAL = 2
MIN_VOCABULARY_SIZE = BYTES + SPECIAL
_END_OF_WORD = "</w>"
# The pattern of open_clip's tokenizer without its special tokens, which no caption contains.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def make_merges(captions: Iterable[str], vocabulary_size: int, path: Path) -> None:
    """Writes a file of merges for open_clip's tokenizer; the same captions give the same bytes.

    Args:
        captions: text from which the merges are learned.
        vocabulary_size: maximal number of ids; captions with few words give fewer.
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
    """Loads the tokenizer from a file of merges.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return SimpleTokenizer(bpe_path=str(path), context_length=context_length)
    except Exception as error:  # Damage raises errors of many kinds in gzip and open_clip.
        raise CheckpointError(f"{path}: is damaged; copy it again from where the run was trained") from error


def vocabulary_of(tokenizer: SimpleTokenizer) -> int:
    """Returns the number of ids, which is the number of rows of the embedding; the end of a text has the last id."""
    return tokenizer.eot_token_id + 1
