"""What a generator's run keeps beside its checkpoints: the tokenizers it was trained with, and the encoded data.

vqgan/     the image tokenizer
text/      the text tokenizer, made from the captions
tokens/    a world's pictures as tokens
words.json, credits.md    what a world's model knows by name, and whose pictures it has seen
"""

from dataclasses import dataclass
from pathlib import Path

from smalti.files import staged, write_atomically
from smalti.models.vqgan import VQGAN
from smalti.text.tokenizer import TextTokenizer
from smalti.training.batches.captioned import prepare
from smalti.training.batches.sources import find_world, read_column
from smalti.training.batches.text_tokenizer import load_tokenizer, make_tokenizer
from smalti.training.data.encoding import Advance
from smalti.training.trainers.generator import GeneratorSettings
from smalti.training.trainers.tokenizer import load_vqgan

VQGAN_FOLDER = "vqgan"
TEXT_FOLDER = "text"
TOKENS_FOLDER = "tokens"
CARRIED_FILES = ("words.json", "credits.md")
"""What goes from a world's folder, if it is there, along to the exported model."""
_CAPTIONS = 50_000
"""So many captions are enough to learn the words from."""


@dataclass(frozen=True)
class GeneratorParts:
    """What a generator is trained with."""

    data: Path
    tokenizer: TextTokenizer
    vqgan: VQGAN


def open_parts(
    settings: GeneratorSettings, data: Path, tokenizer: Path, run: Path, advance: Advance
) -> GeneratorParts:
    """Makes what a run is trained with, or opens what an earlier part of the run made.

    Args:
        settings: of the run.
        data: the folder of a world, or of encoded shards.
        tokenizer: the run that trained the image tokenizer, or a folder with a VQGAN.
        run: the folder of the generator's run.
        advance: is told how many pictures are encoded.

    Raises:
        InvalidInputError: the data folder has nothing to train on, or the tokenizer's run has no checkpoint.
        ModelError: the VQGAN cannot be used.
        SmaltiError: the disk is full.
    """
    if not (run / VQGAN_FOLDER).is_dir():
        with staged(run / VQGAN_FOLDER) as folder:
            load_vqgan(tokenizer).save(folder)
    vqgan = VQGAN.load(run / VQGAN_FOLDER)
    world = find_world(data)
    for file in CARRIED_FILES:
        if world is not None and (world / file).is_file():
            write_atomically(run / file, (world / file).read_bytes())
    encoded = prepare(
        data, vqgan, run / TOKENS_FOLDER, settings.pictures, settings.held_out, settings.seed, advance
    )
    if not (run / TEXT_FOLDER).is_dir():
        with staged(run / TEXT_FOLDER) as folder:
            captions = read_column(encoded, "train", "caption")[:_CAPTIONS].to_pylist()
            make_tokenizer(captions, settings.vocabulary_size, folder)
    return GeneratorParts(encoded, load_tokenizer(run / TEXT_FOLDER, settings.model.max_text_length), vqgan)
