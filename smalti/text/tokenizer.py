"""Tokenizing prompts for the text encoder: normalisation, then byte-level BPE."""

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
    """Tokenized prompts, padded to one length."""

    input_ids: Int[np.ndarray, "batch length"]
    attention_mask: Int[np.ndarray, "batch length"]
    """1 at text, including `<s>` and `</s>`; 0 at padding."""
    cut: tuple[bool, ...]
    """Whether each prompt was too long, so that its end is missing."""
    normalized: tuple[str, ...]
    """The prompts after normalisation."""


class TextTokenizer:
    """A model's text tokenizer: `<s>`, the prompt's tokens, `</s>`, and padding up to the model's length."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_text_length: int, normalizer: "TextNormalizer | None"
    ) -> None:
        """Combines the parts; `TextTokenizer.load` reads them from a model's files.

        Raises:
            ModelError: the vocabulary has no `<s>`, `</s>` or `<pad>`, or the length leaves no room for text.
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
        """Reads `tokenizer.json` of a folder, or else `vocab.json` and `merges.txt`.

        Args:
            folder: the folder; if it contains the list of words for hashtags, `enwiki-words-frequency.txt`, that is
                used too.
            max_text_length: number of tokens that the model reads, including `<s>` and `</s>`.
            normalize: whether `TextNormalizer` normalises prompts first.

        Raises:
            ModelError: files are missing or cannot be read.
        """
        normalizer = None
        if normalize:
            from smalti.text.normalizer import TextNormalizer  # Generators do not have its libraries.

            words = folder / WORDS_FILE
            normalizer = TextNormalizer(words if words.is_file() else None)
        return cls(_read_tokenizer(folder), max_text_length=max_text_length, normalizer=normalizer)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, including special tokens."""
        return int(self._tokenizer.get_vocab_size())

    def __call__(self, prompts: Sequence[str]) -> TokenizedText:
        """Returns the ids of prompts; the end of a prompt that is too long is cut off before `</s>`.

        As in the original, `</s>` and the like in a prompt are read as special tokens, unless normalisation
        removes them.

        Raises:
            InvalidInputError: a prompt that is not normalised contains half of a surrogate pair.
        """
        normalized = tuple(self._normalizer(prompt) if self._normalizer else prompt for prompt in prompts)
        return self._lay_out(normalized)

    def unconditional(self) -> TokenizedText:
        """Returns the empty prompt as a batch of one; as in the original, it is not normalised (to a space)."""
        return self._lay_out(("",))

    def save(self, folder: Path) -> None:
        """Writes the files that `TextTokenizer.load` reads, each atomically."""
        save_tokenizer(self._tokenizer, folder)
        if self._normalizer and self._normalizer.words:
            _copy(self._normalizer.words, folder / WORDS_FILE)

    def _lay_out(self, texts: tuple[str, ...]) -> TokenizedText:
        room = self.max_text_length - 2  # for <s> and </s>
        try:
            # Without the file's special tokens: the model determines their positions, see below.
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except TypeError:  # The library raises it for a string that cannot be encoded as UTF-8.
            problem = "contains half of a surrogate pair; send valid Unicode"
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
            raise ModelError(
                f"the text tokenizer's vocabulary has no {token}; use the files of a DALL·E mini model"
            )
        return int(number)


def byte_level(model: models.BPE) -> Tokenizer:
    """Makes a tokenizer with GPT-2's byte alphabet and pre-tokenization; the first word gets no leading space."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # <mask> replaces a word together with the space before it, as in BART.
    special = [AddedToken(token, special=True, lstrip=token == MASK) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens([token for token in special if model.token_to_id(token.content) is not None])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, `vocab.json` and `merges.txt`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        temporary = Path(name)
        tokenizer.save(str(temporary / TOKENIZER_FILE))
        tokenizer.model.save(str(temporary))
        for file in (TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE):
            (temporary / file).replace(folder / file)


def copy_text_files(source: Path, target: Path) -> None:
    """Copies the files of a text tokenizer, and the list of words if there is one, from one folder to another."""
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
        except Exception as error:  # The library raises a plain Exception.
            raise ModelError(f"{whole}: cannot be read as a tokenizer ({error}); fetch it again") from None
        # The model determines the length, not the file.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    if not (vocabulary.is_file() and merges.is_file()):
        needed = f"{TOKENIZER_FILE}, or {VOCABULARY_FILE} and {MERGES_FILE}"
        raise ModelError(f"{folder}: has no text tokenizer; add {needed}")
    try:
        return byte_level(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:
        raise ModelError(
            f"{folder}: {VOCABULARY_FILE} and {MERGES_FILE} are not a valid tokenizer ({error}); fetch them again"
        ) from None
