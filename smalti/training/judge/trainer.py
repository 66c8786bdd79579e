"""Training the judge, to measure generators by: it has seen neither their pictures nor CLIP.

Of a picture of one figure it says the thing, or that no whole thing is there; the thing's colour; and the background.
Damaged pictures are among those it learns from, since a judge that has seen only good ones takes a blob of the right
colour for the thing.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from PIL import Image

from smalti.errors import InvalidInputError
from smalti.files import write_atomically
from smalti.models.layers import Parameters, apply, compute_dtype
from smalti.models.vqgan import VQGAN
from smalti.training.batches.sources import WORLD_FILE, find_world
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import WorldDescription, read_description
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.judge.network import Judge, JudgeModule, JudgeSizes, Logits, accuracy, counts_of
from smalti.training.judge.samples import SampleMaker, Samples, held_out_samples
from smalti.training.loop.optimizers import make_optimizer
from smalti.training.loop.run_folder import read_best, read_run_settings
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import sheet
from smalti.training.loop.step import Batch, Extra, Metrics, SteppedTrainee, Stepper, Task

_SHEET_PICTURES = 32


class JudgeSettings(RunSettings):
    """A run that trains a judge."""

    counted: ClassVar[str] = "pictures"
    trains: Literal["judge"] = "judge"
    model: JudgeSizes = JudgeSizes()
    damaged: Share = 0.25
    """The share of pictures that are damaged."""
    round_trips: Count = 12_000
    """So many pictures go through the image tokenizer and back before training; half of every batch is of them."""


class JudgeTask(Task):
    """The network and its loss."""

    def __init__(self, sizes: JudgeSizes, counts: tuple[int, int, int], seed: int = 0) -> None:
        """Keeps what is trained.

        Args:
            sizes: of the network.
            counts: how many things, colours and backgrounds there are.
            seed: of the untrained weights.
        """
        self._seed = seed
        self._sizes = sizes
        self._module = JudgeModule(compute_dtype(), sizes, *counts)

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns untrained weights, and nothing to remember."""
        pixels = jnp.zeros((1, self._sizes.resolution, self._sizes.resolution, 3))
        return jax.jit(self._module.init)(jax.random.key(self._seed), pixels)["params"], {}

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Adds up the cross-entropies of thing, wholeness, colour and background, in nats."""
        pixels = batch["pixels"].astype(jnp.float32) / 255
        said = Logits(*(nn.log_softmax(logits) for logits in apply(self._module, params, pixels)))
        whole = batch["things"] < self._module.things
        # What a damaged thing was is no question. Of colours that look alike any is right, so what counts is the
        # probability of all of them together.
        thing = jnp.where(whole, _at(said.things, jnp.where(whole, batch["things"], 0)), 0)
        colour = jax.nn.logsumexp(jnp.where(batch["colours"], said.colours, -jnp.inf), axis=1)
        losses = {
            "thing": -thing.mean(),
            "whole": -_at(said.whole, whole.astype(jnp.int32)).mean(),
            "colour": -colour.mean(),
            "background": -_at(said.backgrounds, batch["backgrounds"]).mean(),
        }
        return jnp.stack(list(losses.values())).sum(), (losses, {})


class JudgeTrainee(SteppedTrainee):
    """Trains a judge on the pictures of a world."""

    def __init__(self, settings: JudgeSettings, worlds: Mapping[int, World], vqgan: VQGAN) -> None:
        """Makes the untrained network, and the pictures that go through the tokenizer.

        Args:
            settings: of the run.
            worlds: the world at the judge's resolution and at the tokenizer's.
            vqgan: the image tokenizer, whose traces a generated picture has too.
        """
        side = settings.model.resolution
        world, at_tokens = worlds[side], worlds[vqgan.config.resolution]
        self._sizes, self._counts = settings.model, counts_of(world.description)
        self.task = JudgeTask(settings.model, self._counts, settings.seed)
        acceptable = acceptable_colours(world)
        maker = SampleMaker(world, acceptable, settings.damaged)
        token_maker = SampleMaker(at_tokens, acceptable, settings.damaged)
        # Behind the pictures that the run sees as they are composed.
        first = settings.steps * settings.batch_size
        pool = token_maker.round_trips(settings.seed, range(first, first + settings.round_trips), side, vqgan)
        stepper = Stepper(self.task, make_optimizer(settings.optimizer, settings.steps), settings.accumulate)
        super().__init__(stepper, partial(_make_batch, maker, pool, settings))
        self._held_out = held_out_samples(maker, token_maker, vqgan, side, settings.held_out)
        self._loss = jax.jit(lambda params, batch: self.task.loss(params, batch)[0])
        self.tokens_per_step = settings.batch_size

    def evaluate(self) -> dict[str, float]:
        """Measures the loss and how often the judge is right, on combinations that training never sees."""
        losses = [float(self._loss(self.weights, samples.batch())) for samples in self._held_out.values()]
        measured = {"loss": float(np.mean(losses))}
        judge = self.judge()
        for name, samples in self._held_out.items():
            right = accuracy(judge, samples).model_dump(exclude={"pictures", "fooled"})
            measured |= {f"{name}_{of}": share for of, share in right.items()}
        return measured

    def sheet(self) -> Image.Image:
        """Lays held-out things that the judge gets wrong in rows, and below damaged ones that it takes for whole."""
        judge = self.judge()
        shown = []
        for name in ("tokens", "damaged"):
            samples = self._held_out[name]
            wrong = samples.pixels[judge.look(samples.pixels).things != samples.things][:_SHEET_PICTURES]
            empty = np.full((_SHEET_PICTURES - len(wrong), *wrong.shape[1:]), 96, np.uint8)
            shown += [wrong, empty]
        return sheet(np.concatenate(shown))

    def judge(self) -> Judge:
        """Returns the judge as it is now."""
        return Judge(self._sizes, self._counts, self.weights)


def open_trainee(settings: JudgeSettings, data: Path, vqgan: VQGAN, run: Path) -> JudgeTrainee:
    """Opens the world of a data folder and makes the trainee of a run; the run keeps which world it is.

    Raises:
        InvalidInputError: the data folder has no world, or the run was started with another one.
    """
    folder = find_world(data)
    if folder is None:
        raise InvalidInputError("data", f"{data} has no world; make one with `smalti data build`")
    kept, given = run / WORLD_FILE, folder / WORLD_FILE
    if kept.is_file() and read_description(kept) != read_description(given):
        raise InvalidInputError("data", f"{folder} is another world than the one the run in {run} has")
    sides = {settings.model.resolution, vqgan.config.resolution}
    worlds = {side: World.load(folder, side) for side in sides}
    write_atomically(kept, given.read_bytes())
    return JudgeTrainee(settings, worlds, vqgan)


def load_judge(run: Path, world: WorldDescription) -> Judge:
    """Loads the best weights of a judge's run.

    Args:
        run: the folder.
        world: what the judge must know.

    Raises:
        InvalidInputError: there is no run of a judge, it has no evaluated checkpoint, or knows another world.
        CheckpointError: the checkpoint is damaged.
    """
    settings = read_run_settings(run, JudgeSettings)
    if _words(read_description(run / WORLD_FILE)) != _words(world):
        raise InvalidInputError("judge", f"the judge of {run} knows another world; train one with this world")
    counts = counts_of(world)
    untrained = jax.eval_shape(lambda: JudgeTask(settings.model, counts).initialize()[0])
    return Judge(settings.model, counts, read_best(run, untrained))


def _words(description: WorldDescription) -> tuple[Sequence[Any], ...]:
    """What the rows of a judge's verdicts mean."""
    things = [(thing.word, thing.label) for thing in description.things]
    return things, list(description.colours.items()), list(description.backgrounds.items())


def _make_batch(maker: SampleMaker, pool: Samples, settings: JudgeSettings, step: int) -> Batch:
    """Joins pictures that are new with pictures from the pool; mirrors some, and moves some by a pixel."""
    size, side = settings.batch_size, settings.model.resolution
    generator = np.random.Generator(np.random.Philox(key=(settings.seed, 15), counter=(0, 0, 0, step)))
    drawn = pool.take(generator.integers(0, len(pool.things), size // 2))
    fresh = maker.fresh(settings.seed, range(step * size, (step + 1) * size - size // 2), side)
    batch = {name: np.concatenate([rows, drawn.batch()[name]]) for name, rows in fresh.batch().items()}
    pixels = batch["pixels"]
    mirrored = generator.random(size) < 0.5
    pixels[mirrored] = pixels[mirrored, :, ::-1]
    # Borders are nearly always background: what leaves on the one side and comes back on the other is not seen.
    moves = generator.integers(-1, 2, (size, 2))
    batch["pixels"] = np.stack(
        [np.roll(each, move, (0, 1)) for each, move in zip(pixels, moves, strict=True)]
    )
    return batch


def _at(
    log_probabilities: Float[Array, "batch classes"], rows: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    return jnp.take_along_axis(log_probabilities, rows[:, None], axis=1)[:, 0]
