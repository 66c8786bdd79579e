"""What a ranker's run keeps beside its checkpoints, and the folder that its best weights become.

text/merges.txt.gz    the words, made from the captions
vqgan/                the image tokenizer whose traces its pictures had, if it was given one
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.errors import InvalidInputError
from smalti.files import staged
from smalti.models.clip import MERGES_FILE, write_folder
from smalti.models.vqgan import VQGAN
from smalti.training.batches.clip_tokenizer import load_merges, make_merges, vocabulary_of
from smalti.training.batches.pairs import PairSource, open_pairs
from smalti.training.batches.redrawing import Redrawing
from smalti.training.loop.run_folder import read_best, read_run_settings
from smalti.training.trainers.generator_run import TEXT_FOLDER, VQGAN_FOLDER
from smalti.training.trainers.ranker import RankerSettings, RankerTrainee, load_weights, untrained, weights_of
from smalti.training.trainers.tokenizer import load_vqgan


@dataclass(frozen=True)
class RankerParts:
    """What a ranker is trained with, opened before its run is made."""

    settings: RankerSettings
    pairs: PairSource
    vqgan: VQGAN | None

    def trainee(self, run: Path) -> RankerTrainee:
        """Makes the trainee; what it is trained with is kept in the run, if it is not there yet.

        Raises:
            ConfigError: open_clip cannot make a model of these sizes.
            InvalidInputError: the data has too few pictures.
            SmaltiError: the disk is full.
        """
        settings = self.settings
        if self.vqgan is not None and not (run / VQGAN_FOLDER).is_dir():
            with staged(run / VQGAN_FOLDER) as folder:
                self.vqgan.save(folder)
        if not (run / TEXT_FOLDER).is_dir():
            with staged(run / TEXT_FOLDER) as folder:
                make_merges(self.pairs.captions(), settings.vocabulary_size, folder / MERGES_FILE)
        tokenizer = load_merges(run / TEXT_FOLDER / MERGES_FILE, settings.model.text_cfg.context_length)
        redrawing = (
            Redrawing(self.vqgan, settings.seed, settings.redrawn, settings.damaged) if self.vqgan else None
        )
        return RankerTrainee(settings, self.pairs, tokenizer, redrawing)


def open_parts(settings: RankerSettings, data: Path, vqgan: Path | None, run: Path) -> RankerParts:
    """Opens what a run is trained with; a run that is resumed keeps its image tokenizer.

    Args:
        settings: of the run.
        data: the folder of a world, or of Parquet shards with `image` and `caption`.
        vqgan: the run that trained the image tokenizer, or a folder with a VQGAN; None for pictures as they are.
        run: the folder of the ranker's run.

    Raises:
        InvalidInputError: the data folder has nothing to train on, or the image tokenizer is missing, not wanted,
            or of another resolution.
        ModelError: the VQGAN cannot be used.
    """
    side = settings.model.vision_cfg.image_size
    pairs = open_pairs(data, side, settings.batch_size, settings.seed, settings.alike)
    kept = run / VQGAN_FOLDER
    if kept.is_dir():
        return RankerParts(settings, pairs, VQGAN.load(kept))
    if vqgan is None and settings.redrawn:
        raise InvalidInputError(
            "vqgan", f"redrawn is {settings.redrawn}: give the tokenizer that draws, or set redrawn = 0"
        )
    if vqgan is None:
        return RankerParts(settings, pairs, None)
    if not settings.redrawn:
        raise InvalidInputError("vqgan", "redrawn is 0, so it draws nothing; leave it out, or set redrawn")
    network = load_vqgan(vqgan)
    if network.config.resolution != side:
        raise InvalidInputError(
            "vqgan", f"its pictures have {network.config.resolution} pixels, image_size is {side}"
        )
    return RankerParts(settings, pairs, network)


@dataclass(frozen=True)
class TrainedRanker:
    """The best weights of a run, as open_clip's model with its words."""

    model: Any
    config: dict[str, Any]
    merges: bytes

    @classmethod
    def read(cls, run: Path) -> "TrainedRanker":
        """Reads a run.

        Raises:
            InvalidInputError: there is no run, one of another kind, or it has not been evaluated yet.
            CheckpointError: the checkpoint is damaged, or of another model.
        """
        settings = read_run_settings(run, RankerSettings)
        merges = run / TEXT_FOLDER / MERGES_FILE
        if not merges.is_file():
            raise InvalidInputError("run", f"{run} lost its words: there is no {merges}")
        config = settings.config(vocabulary_of(load_merges(merges, settings.model.text_cfg.context_length)))
        model = untrained(config, settings.seed)
        load_weights(model, read_best(run, weights_of(model)))
        return cls(model.eval(), config, merges.read_bytes())

    def write(self, folder: Path) -> None:
        """Writes the folder that `smalti.models.clip.Clip` loads.

        Products and tables have 16 bits there: the scores differ by less than a thousandth, the file by half.
        """
        for weight in self.model.parameters():
            if weight.ndim > 1:
                weight.data = weight.data.half()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MERGES_FILE).write_bytes(self.merges)
        write_folder(folder, self.model, self.config)
