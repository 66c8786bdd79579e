"""The text encoder: prompts in, encodings out."""

from functools import cached_property

import numpy as np

from smalti.engines.encoding import Encoding
from smalti.models.bart import DalleBart
from smalti.models.text import TextTokenizer, TokenizedText


class EncoderEngine:
    """Encodes prompts one at a time, always in the same shape, so that one program serves all."""

    def __init__(self, bart: DalleBart, tokenizer: TextTokenizer) -> None:
        """Keeps the model's encoder and the tokenizer."""
        self._bart = bart
        self._tokenizer = tokenizer

    def encode(self, prompt: str) -> Encoding:
        """Returns the encoding of a prompt; one that is too long is cut."""
        return self._encode(self._tokenizer([prompt]))

    @cached_property
    def unconditional(self) -> Encoding:
        """The encoding of the empty prompt, which guidance leads away from; computed once."""
        return self._encode(self._tokenizer.unconditional())

    def _encode(self, text: TokenizedText) -> Encoding:
        states = self._bart.encode(text.input_ids, text.attention_mask)
        return Encoding(np.asarray(states[0]), text.attention_mask[0], text.cut[0])
