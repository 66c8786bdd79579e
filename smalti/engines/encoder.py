"""The text encoder: prompts in, encodings out."""

from functools import cached_property

import numpy as np

from smalti.engines.encoding import Encoding
from smalti.models.bart import DalleBart
from smalti.registry.spec import ModelSpec
from smalti.text.tokenizer import TextTokenizer, TokenizedText


class EncoderEngine:
    """Encodes prompts one at a time, always in the same shape, so that one program serves all prompts."""

    def __init__(self, bart: DalleBart, tokenizer: TextTokenizer) -> None:
        """Combines a model's encoder with its tokenizer."""
        self._bart = bart
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, spec: ModelSpec) -> "EncoderEngine":
        """Loads the engine of a model.

        Raises:
            ModelError: a file of the model cannot be used.
        """
        config, folder = spec.transformer, spec.folder
        tokenizer = TextTokenizer.load(
            folder.text_folder, max_text_length=config.max_text_length, normalize=config.normalize_text
        )
        return cls(DalleBart.load(folder.bart_folder, part="encoder"), tokenizer)

    def is_cut(self, prompt: str) -> bool:
        """Returns whether a prompt is too long for the model, without encoding it."""
        return self._tokenizer([prompt]).cut[0]

    def count_tokens(self, prompt: str) -> int:
        """Returns the number of text tokens that are read of a prompt, including start and end."""
        return int(self._tokenizer([prompt]).attention_mask[0].sum())

    def encode(self, prompt: str) -> Encoding:
        """Returns the encoding of a prompt; the end of a long prompt is cut off."""
        return self._encode(self._tokenizer([prompt]))

    @cached_property
    def unconditional(self) -> Encoding:
        """Encoding of the empty prompt, for guidance; computed once."""
        return self._encode(self._tokenizer.unconditional())

    def _encode(self, text: TokenizedText) -> Encoding:
        states = self._bart.encode(text.input_ids, text.attention_mask)
        # A slice of an array on the device would be a program of its own.
        return Encoding(np.asarray(states)[0], text.attention_mask[0], text.cut[0])


def unconditional_encoding(spec: ModelSpec) -> Encoding:
    """Returns the encoding of a model's empty prompt, without keeping the encoder.

    Does not load the text normaliser, whose libraries are not installed with a generator.

    Raises:
        ModelError: a file of the model cannot be used.
    """
    folder, length = spec.folder, spec.transformer.max_text_length
    tokenizer = TextTokenizer.load(folder.text_folder, max_text_length=length, normalize=False)
    return EncoderEngine(DalleBart.load(folder.bart_folder, part="encoder"), tokenizer).unconditional
