"""Encoding the prompts of a shard."""

from collections.abc import Callable, Sequence

from smalti.batches import BatchPrompt
from smalti.engines.encoding import Encoding
from smalti.shards.encodings import ShardEncodings, distinct_texts
from smalti.shards.readings import PROMPT_ERRORS, OnPrompt, Reading
from smalti.text.rewording import Rewriter


def encode_shard(
    prompts: Sequence[BatchPrompt],
    encode: Callable[[str], Encoding],
    rewriter: Rewriter,
    *,
    on_prompt: OnPrompt = lambda prompt: None,
) -> ShardEncodings:
    """Rewrites the prompts of a shard in words that the model knows, and encodes them.

    A prompt over which that fails gets a problem, and the others go on.

    Args:
        prompts: the prompts.
        encode: returns the encoding of a text.
        rewriter: rewrites prompts, and knows what they leave open.
        on_prompt: called before each prompt.
    """
    readings: list[Reading] = []
    encodings: dict[str, Encoding] = {}
    for prompt in prompts:
        on_prompt(prompt)
        reading = Reading(problem=prompt.problem)
        if prompt.problem is None:
            reading = _read(prompt, rewriter)
            try:
                for text in reading.texts(prompt):
                    if text not in encodings:
                        encodings[text] = encode(text)
            except PROMPT_ERRORS as error:
                reading = reading.failed(str(error))
        readings.append(reading)
    # What only a failed prompt has needed is left out.
    texts = distinct_texts(prompts, readings)
    return ShardEncodings(readings=tuple(readings), encodings={text: encodings[text] for text in texts})


def _read(prompt: BatchPrompt, rewriter: Rewriter) -> Reading:
    effective = rewriter(prompt.prompt).prompt
    wordings: tuple[str, ...] = ()
    if prompt.vary:
        wordings = rewriter.wordings(effective, prompt.seed, range(prompt.candidates))
    return Reading(effective_prompt=None if effective == prompt.prompt else effective, wordings=wordings)
