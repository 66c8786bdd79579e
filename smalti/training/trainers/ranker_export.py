"""The best weights of a ranker's run, as a folder that `smalti.models.clip.Clip` loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.errors import InvalidInputError
from smalti.models.clip import MERGES_FILE, write_folder
from smalti.training.batches.clip_tokenizer import load_merges, vocabulary_of
from smalti.training.loop.run_folder import load_best, load_run_settings
from smalti.training.trainers.inputs import TEXT_FOLDER
from smalti.training.trainers.ranker import RankerSettings, load_weights, untrained, weights_of


@dataclass(frozen=True)
class TrainedRanker:
    """A trained ranker: open_clip's model with its configuration and its words."""

    model: Any
    config: dict[str, Any]
    merges: bytes

    @classmethod
    def load(cls, run: Path) -> "TrainedRanker":
        """Loads the best weights of a run.

        Raises:
            InvalidInputError: the folder holds no ranker's run, or the run has not been evaluated yet.
            CheckpointError: the checkpoint is damaged, or belongs to another model.
        """
        settings = load_run_settings(run, RankerSettings)
        merges = run / TEXT_FOLDER / MERGES_FILE
        if not merges.is_file():
            raise InvalidInputError("run", f"{run} has lost its words: {merges} is missing")
        config = settings.config(vocabulary_of(load_merges(merges, settings.model.text_cfg.context_length)))
        model = untrained(config, settings.seed)
        load_weights(model, load_best(run, weights_of(model)))
        return cls(model.eval(), config, merges.read_bytes())

    def write(self, folder: Path) -> None:
        """Writes the folder.

        Matrices are stored with 16 bits: the file has half the size, and scores change by less than a thousandth.
        """
        for weight in self.model.parameters():
            if weight.ndim > 1:
                weight.data = weight.data.half()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MERGES_FILE).write_bytes(self.merges)
        write_folder(folder, self.model, self.config)
