"""The inputs of a generator's training, made once and kept in its run.

vqgan/                    the image tokenizer
text/                     the text tokenizer, learned from the captions
tokens/                   pictures of a world, as tokens
words.json, credits.md    of a world: the words that the model knows, and the makers of the pictures
"""

from pathlib import Path

from smalti.files import write_atomically
from smalti.models.vqgan import VQGAN
from smalti.training.batches.captioned import encoded_data
from smalti.training.batches.sources import find_world, load_column
from smalti.training.batches.text_tokenizer import load_tokenizer, make_tokenizer
from smalti.training.trainers.generator import GeneratorSettings, GeneratorTrainee
from smalti.training.trainers.inputs import TEXT_FOLDER, VQGAN_FOLDER, Advance, Inputs, keep
from smalti.training.trainers.tokenizer import require_vqgan

TOKENS_FOLDER = "tokens"
CARRIED_FILES = ("words.json", "credits.md")
"""Files of a world that are copied to the run and to the exported model, if they exist."""
_CAPTIONS = 50_000
"""Number of captions that the text tokenizer is learned from."""


def prepare(settings: GeneratorSettings, inputs: Inputs, run: Path, advance: Advance) -> GeneratorTrainee:
    """Makes the trainee of a run.

    Args:
        settings: of the run.
        inputs: a world or a folder of encoded shards, and the image tokenizer.
        run: folder of the run.
        advance: called while pictures of a world are encoded.

    Raises:
        InvalidInputError: the data folder cannot be used, or the tokenizer's run has no checkpoint.
        ModelError: the VQGAN cannot be used.
        SmaltiError: the disk is full or cannot be written.
    """
    keep(run / VQGAN_FOLDER, lambda folder: require_vqgan(inputs).save(folder))
    vqgan = VQGAN.load(run / VQGAN_FOLDER)
    world = find_world(inputs.data)
    for file in CARRIED_FILES:
        if world is not None and (world / file).is_file():
            write_atomically(run / file, (world / file).read_bytes())
    encoded = encoded_data(
        inputs.data,
        vqgan,
        run / TOKENS_FOLDER,
        pictures=settings.pictures,
        held_out=settings.held_out,
        seed=settings.seed,
        advance=lambda done: advance(done, settings.pictures),
    )
    keep(
        run / TEXT_FOLDER,
        lambda folder: make_tokenizer(
            load_column(encoded, "train", "caption")[:_CAPTIONS].to_pylist(),
            settings.vocabulary_size,
            folder,
        ),
    )
    tokenizer = load_tokenizer(run / TEXT_FOLDER, settings.model.max_text_length)
    return GeneratorTrainee(settings, data=encoded, tokenizer=tokenizer, vqgan=vqgan)
