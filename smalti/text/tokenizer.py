"""Text to the ids that the text encoder reads: normalised, then split by byte-level BPE."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from smalti.errors import InvalidInputError, ModelError
from smalti.files import atomic_path

if TYPE_CHECKING:
    from smalti.text.normalizer import TextNormalizer

TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
WORDS_FILE = "enwiki-words-frequency.txt"

START, PAD, END, UNKNOWN, MASK = SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True)
class TokenizedText:
    """Prompts as the text encoder reads them, padded to one length."""

    input_ids: Int[np.ndarray, "batch length"]
    attention_mask: Int[np.ndarray, "batch length"]
    """1 at text, `<s>` and `</s>` included; 0 at padding."""
    cut: tuple[bool, ...]
    """Which prompts did not fit, so that their end is missing."""
    normalized: tuple[str, ...]
    """The prompts as they were split."""


class TextTokenizer:
    """A model's text tokenizer: `<s>`, the prompt's tokens, `</s>`, and padding up to the model's length."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_text_length: int, normalizer: "TextNormalizer | None"
    ) -> None:
        """Joins the parts; `TextTokenizer.load` makes them from a model's files.

        Raises:
            ModelError: the vocabulary has no `<s>`, `</s>` or `<pad>`, or the length has no room for text.
        """
        if max_text_length < 3:
            raise ModelError(
                f"max_text_length: {max_text_length} leaves no room between {START} and {END}; 64 is usual"
            )
        self._tokenizer = tokenizer
        self._normalizer = normalizer
        self.max_text_length = max_text_length
        self._start, self._end, self._pad = (self._id(token) for token in (START, END, PAD))

    @classmethod
    def load(cls, folder: Path, *, max_text_length: int, normalize: bool) -> "TextTokenizer":
        """Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`, of a folder.

        Args:
            folder: the folder; the list of words for hashtags, `enwiki-words-frequency.txt`, is taken from it
                too, if it is there.
            max_text_length: how many tokens the model reads, `<s>` and `</s>` included.
            normalize: whether prompts are normalised first; see `TextNormalizer`.

        Raises:
            ModelError: files are missing or cannot be read.
        """
        normalizer = None
        if normalize:
            from smalti.text.normalizer import TextNormalizer  # A generator does without its libraries.

            words = folder / WORDS_FILE
            normalizer = TextNormalizer(words if words.is_file() else None)
        return cls(_read_tokenizer(folder), max_text_length=max_text_length, normalizer=normalizer)

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, special tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def __call__(self, prompts: Sequence[str]) -> TokenizedText:
        """Returns prompts as ids; of one that is too long the end is cut off, and `</s>` closes what is left.

        As in the original, `</s>` and its like in a prompt are read as special tokens; normalising removes them.

        Raises:
            InvalidInputError: a prompt that is not normalised holds half of a surrogate pair.
        """
        normalized = tuple(self._normalizer(prompt) if self._normalizer else prompt for prompt in prompts)
        return self._lay_out(normalized)

    def unconditional(self) -> TokenizedText:
        """Returns the empty prompt, a batch of one; as in the original it is not normalised (to a space)."""
        return self._lay_out(("",))

    def save(self, folder: Path) -> None:
        """Writes the files that `TextTokenizer.load` reads, each whole or not at all."""
        save_tokenizer(self._tokenizer, folder)
        if self._normalizer and self._normalizer.words:
            _copy(self._normalizer.words, folder / WORDS_FILE)

    def _lay_out(self, texts: tuple[str, ...]) -> TokenizedText:
        room = self.max_text_length - 2  # for <s> and </s>
        try:
            # Without the file's own special tokens: where they stand is settled by the model, below.
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except TypeError:  # What the library raises at a string that has no UTF-8.
            problem = "it holds half of a surrogate pair; send valid Unicode"
            raise InvalidInputError("prompt", problem) from None
        pieces = [encoding.ids for encoding in encodings]
        input_ids = np.full((len(texts), self.max_text_length), self._pad, np.int32)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(pieces):
            closed = [self._start, *ids[:room], self._end]
            input_ids[row, : len(closed)] = closed
            attention_mask[row, : len(closed)] = 1
        return TokenizedText(input_ids, attention_mask, tuple(len(ids) > room for ids in pieces), texts)

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ModelError(f"the text tokenizer's vocabulary has no {token}; it is none of DALL·E mini's")
        return int(number)


def byte_level(model: models.BPE) -> Tokenizer:
    """Makes a tokenizer with GPT-2's alphabet of bytes and its split into words; the first gets no space."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # <mask> stands for a word, so the space before the word is its own; as in BART.
    special = [AddedToken(token, special=True, lstrip=token == MASK) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens([token for token in special if model.token_to_id(token.content) is not None])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, `vocab.json` and `merges.txt`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        temporary = Path(name)
        tokenizer.save(str(temporary / TOKENIZER_FILE))
        tokenizer.model.save(str(temporary))
        for file in (TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE):
            (temporary / file).replace(folder / file)


def copy_text_files(source: Path, target: Path) -> None:
    """Copies a text tokenizer's files, and the list of words if it is there, from one folder to another."""
    for name in (TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE, WORDS_FILE):
        if (source / name).is_file():
            _copy(source / name, target / name)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _read_tokenizer(folder: Path) -> Tokenizer:
    whole, vocabulary, merges = (folder / name for name in (TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE))
    if whole.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(whole))
        except Exception as error:  # The library raises nothing narrower.
            raise ModelError(f"{whole}: cannot be read as a tokenizer ({error}); fetch it again") from None
        # The length is the model's, whatever the file says.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    if not (vocabulary.is_file() and merges.is_file()):
        needed = f"{TOKENIZER_FILE}, or {VOCABULARY_FILE} and {MERGES_FILE}"
        raise ModelError(f"{folder}: no text tokenizer in it; put {needed} there")
    try:
        return byte_level(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:
        raise ModelError(
            f"{folder}: {VOCABULARY_FILE} and {MERGES_FILE} are no tokenizer ({error}); fetch them again"
        ) from None
