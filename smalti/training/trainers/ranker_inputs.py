"""The inputs of a ranker's training, made once and kept in its run.

text/merges.txt.gz    the ranker's words, learned from the captions
vqgan/                the image tokenizer, if some pictures are reconstructed from their tokens
"""

from pathlib import Path

from smalti.errors import InvalidInputError
from smalti.models.clip import MERGES_FILE
from smalti.models.vqgan import VQGAN
from smalti.training.batches.clip_tokenizer import load_merges, make_merges
from smalti.training.batches.pairs import PairSource, open_pairs
from smalti.training.batches.reconstruction import Reconstructor
from smalti.training.trainers.inputs import TEXT_FOLDER, VQGAN_FOLDER, Advance, Inputs, keep
from smalti.training.trainers.ranker import RankerSettings, RankerTrainee
from smalti.training.trainers.tokenizer import load_vqgan


def prepare(settings: RankerSettings, inputs: Inputs, run: Path, advance: Advance) -> RankerTrainee:
    """Makes the trainee of a run.

    Args:
        settings: of the run.
        inputs: a world or Parquet shards with `image` and `caption`, and the image tokenizer if one is wanted; a
            resumed run uses the one that it kept.
        run: folder of the run.
        advance: not called, since no pictures are encoded ahead of time.

    Raises:
        ConfigError: open_clip has no model of these sizes.
        InvalidInputError: the data folder cannot be used, or the image tokenizer is missing, not wanted, or has
            another resolution.
        ModelError: the VQGAN cannot be used.
        SmaltiError: the disk is full or cannot be written.
    """
    side = settings.model.vision_cfg.image_size
    pairs = open_pairs(inputs.data, side, settings.batch_size, settings.seed, settings.alike)
    return make_trainee(settings, pairs, open_vqgan(settings, inputs.vqgan, run), run)


def open_vqgan(settings: RankerSettings, given: Path | None, run: Path) -> VQGAN | None:
    """Returns the image tokenizer that a run kept or that was given, or None for a run without one.

    Raises:
        InvalidInputError: the image tokenizer is missing, not wanted, or has another resolution.
        ModelError: the VQGAN cannot be used.
    """
    kept = run / VQGAN_FOLDER
    if kept.is_dir():
        return VQGAN.load(kept)
    if given is None and settings.redrawn:
        raise InvalidInputError(
            "vqgan", f"must be given, since redrawn is {settings.redrawn}; give it, or set redrawn = 0"
        )
    if given is None:
        return None
    if not settings.redrawn:
        raise InvalidInputError(
            "vqgan", "must not be given, since redrawn is 0; leave it out, or set redrawn"
        )
    vqgan = load_vqgan(given)
    side, sizes = settings.model.vision_cfg.image_size, vqgan.config
    factor, rest = divmod(sizes.resolution, side)
    # The pictures of a decoder that draws larger ones than its encoder reads are reduced.
    if rest or not factor or sizes.reduction % factor:
        raise InvalidInputError(
            "vqgan", f"must have the resolution of image_size, {side}, not {sizes.resolution}"
        )
    return vqgan


def make_trainee(
    settings: RankerSettings, pairs: PairSource, vqgan: VQGAN | None, run: Path
) -> RankerTrainee:
    """Makes the trainee of a run from its opened inputs, and keeps what it is trained with in the run.

    Raises:
        ConfigError: open_clip has no model of these sizes.
        InvalidInputError: the data has too few pictures.
        SmaltiError: the disk is full or cannot be written.
    """
    if vqgan is not None:
        keep(run / VQGAN_FOLDER, vqgan.save)
    keep(
        run / TEXT_FOLDER,
        lambda folder: make_merges(pairs.captions(), settings.vocabulary_size, folder / MERGES_FILE),
    )
    tokenizer = load_merges(run / TEXT_FOLDER / MERGES_FILE, settings.model.text_cfg.context_length)
    reconstructor = None
    if vqgan is not None:
        reconstructor = Reconstructor(
            vqgan, settings.seed, redrawn=settings.redrawn, damaged=settings.damaged
        )
    return RankerTrainee(settings, pairs=pairs, tokenizer=tokenizer, reconstructor=reconstructor)
