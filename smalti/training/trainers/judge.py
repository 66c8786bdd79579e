"""Training the judge, which measures generators: it has seen neither their pictures nor CLIP.

It says which thing a picture shows, or that it shows no whole thing; the colour of the thing; the background and the
style; how many copies of the thing there are, and how two things stand. It also learns from damaged pictures, since a
judge that has seen only good ones takes a blob of the right colour for the thing.
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
from smalti.training.batches.batch import Batch
from smalti.training.batches.random_numbers import generator_at
from smalti.training.batches.sources import WORLD_FILE, require_world
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import WorldDescription, load_description
from smalti.training.data.world.grounds import ground_kinds
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.judge.network import (
    HeadSizes,
    Judge,
    JudgeModule,
    JudgeSizes,
    Logits,
    accuracy,
    heads_of,
)
from smalti.training.judge.samples import SampleMaker, Samples, held_out_samples
from smalti.training.loop.run_folder import load_best, load_run_settings
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import sheet
from smalti.training.loop.step import Extra, Metrics, Objective
from smalti.training.loop.trainee import JaxTrainee
from smalti.training.trainers.inputs import Advance, Inputs
from smalti.training.trainers.tokenizer import require_vqgan

_SHEET_PICTURES = 32
_STREAM = 15
"""Stream of random numbers of the batches; see `generator_at`."""


class JudgeSettings(RunSettings):
    """Settings of a judge's run."""

    counted: ClassVar[str] = "pictures"
    trains: Literal["judge"] = "judge"
    model: JudgeSizes = JudgeSizes()
    damaged: Share = 0.25
    """Share of the pictures that are damaged."""
    round_trips: Count = 12_000
    """Number of pictures that are reconstructed from their tokens before training; half of every batch is theirs."""


class JudgeObjective(Objective):
    """The network and its loss."""

    def __init__(self, sizes: JudgeSizes, heads: HeadSizes, seed: int = 0) -> None:
        """Makes the network.

        Args:
            sizes: sizes of the network.
            heads: numbers of classes.
            seed: seed of the untrained weights.
        """
        self._seed = seed
        self._sizes = sizes
        self._module = JudgeModule(compute_dtype(), sizes, heads)

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns untrained weights, and an empty memory."""
        pixels = jnp.zeros((1, self._sizes.resolution, self._sizes.resolution, 3))
        return jax.jit(self._module.init)(jax.random.key(self._seed), pixels)["params"], {}

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Returns the sum of the cross-entropies of all classes, in nats; those that a picture does not tell are 0."""
        pixels = batch["pixels"].astype(jnp.float32) / 255
        said = Logits(*(nn.log_softmax(logits) for logits in apply(self._module, params, pixels)))
        whole = batch["things"] < self._module.heads.things
        # The thing of a damaged picture does not count. Any of several colours that look alike is right, so the
        # loss takes their joint probability.
        thing = jnp.where(whole, _at(said.things, jnp.where(whole, batch["things"], 0)), 0)
        colour = jax.nn.logsumexp(jnp.where(batch["colours"], said.colours, -jnp.inf), axis=1)
        losses = {
            "thing": -thing.mean(),
            "whole": -_at(said.whole, whole.astype(jnp.int32)).mean(),
            "colour": -colour.mean(),
            "background": -_at(said.backgrounds, batch["backgrounds"]).mean(),
            "style": -_told(said.styles, batch["styles"]).mean(),
            "count": -_told(said.counts, batch["counts"]).mean(),
            "relation": -_told(said.relations, batch["relations"]).mean(),
        }
        return jnp.stack(list(losses.values())).sum(), (losses, {})


class JudgeTrainee(JaxTrainee):
    """A judge in training."""

    def __init__(self, settings: JudgeSettings, worlds: Mapping[int, World], vqgan: VQGAN) -> None:
        """Makes the untrained network, and the pictures that are reconstructed from their tokens.

        Args:
            settings: of the run.
            worlds: the world at the judge's resolution and at that of the image tokenizer, by resolution.
            vqgan: the image tokenizer; generated pictures show its traces too.
        """
        side = settings.model.resolution
        world, at_tokens = worlds[side], worlds[vqgan.config.resolution]
        self._sizes, self._heads = settings.model, heads_of(world.description)
        acceptable = acceptable_colours(world)
        maker = SampleMaker(world, acceptable, settings.damaged)
        token_maker = SampleMaker(at_tokens, acceptable, settings.damaged)
        # Indices after those of the pictures that the run sees without reconstruction.
        first = settings.steps * settings.batch_size
        pool = token_maker.round_trips(settings.seed, range(first, first + settings.round_trips), side, vqgan)
        super().__init__(
            JudgeObjective(settings.model, self._heads, settings.seed),
            settings,
            partial(_make_batch, maker, pool, settings),
            tokens_per_step=settings.batch_size,
            apart=True,
        )
        self._held_out = held_out_samples(maker, token_maker, vqgan, side, settings.held_out)

    def evaluate(self) -> dict[str, float]:
        """Measures the loss and how often the judge is right, on held-out combinations."""
        losses = [self.loss_of(samples.batch()) for samples in self._held_out.values()]
        measured = {"loss": float(np.mean(losses))}
        judge = self.judge()
        for name, samples in self._held_out.items():
            right = accuracy(judge, samples).model_dump(exclude={"pictures", "fooled"})
            measured |= {f"{name}_{of}": share for of, share in right.items() if share is not None}
        return measured

    def sheet(self) -> Image.Image:
        """Shows held-out things that the judge gets wrong, and below them damaged ones that it takes for whole."""
        judge = self.judge()
        shown = []
        for name in ("tokens", "damaged"):
            samples = self._held_out[name]
            wrong = samples.pixels[judge.look(samples.pixels).things != samples.things][:_SHEET_PICTURES]
            empty = np.full((_SHEET_PICTURES - len(wrong), *wrong.shape[1:]), 96, np.uint8)
            shown += [wrong, empty]
        return sheet(np.concatenate(shown))

    def judge(self) -> Judge:
        """Returns the judge with the current weights."""
        return Judge(self._sizes, self._heads, self.weights)


def prepare(settings: JudgeSettings, inputs: Inputs, run: Path, advance: Advance) -> JudgeTrainee:
    """Makes the trainee of a run, which keeps the description of its world.

    Args:
        settings: of the run.
        inputs: a world and the image tokenizer.
        run: folder of the run.
        advance: not called.

    Raises:
        InvalidInputError: the data folder has no world, the run was started with another world, or the image
            tokenizer has not been trained yet.
        ModelError: the VQGAN cannot be used.
    """
    vqgan = require_vqgan(inputs)
    folder = require_world(inputs.data)
    kept, given = run / WORLD_FILE, folder / WORLD_FILE
    if kept.is_file() and load_description(kept) != load_description(given):
        raise InvalidInputError(
            "data",
            f"{folder} is another world than that of the run in {run}; a resumed run must keep its world",
        )
    sides = {settings.model.resolution, vqgan.config.resolution}
    worlds = {side: World.load(folder, side) for side in sides}
    write_atomically(kept, given.read_bytes())
    return JudgeTrainee(settings, worlds, vqgan)


def load_judge(run: Path, world: WorldDescription) -> Judge:
    """Loads the best weights of a judge's run.

    Args:
        run: folder of the run.
        world: the world that the judge must know.

    Raises:
        InvalidInputError: the folder holds no judge's run, the run has not been evaluated yet, or the judge knows
            another world.
        CheckpointError: the checkpoint is damaged.
    """
    settings = load_run_settings(run, JudgeSettings)
    if _words(load_description(run / WORLD_FILE)) != _words(world):
        raise InvalidInputError("judge", f"the judge in {run} knows another world; train one on this world")
    heads = heads_of(world)
    untrained = jax.eval_shape(lambda: JudgeObjective(settings.model, heads).initialize()[0])
    return Judge(settings.model, heads, load_best(run, untrained))


def _words(description: WorldDescription) -> tuple[Sequence[Any], ...]:
    """Returns the words of a world in the order of the judge's classes."""
    things = [(thing.word, thing.label) for thing in description.things]
    styles = [style.word for style in description.styles]
    colours = [*description.colours.items(), *description.shades.items()]
    return things, styles, colours, list(ground_kinds(description).items())


def _make_batch(maker: SampleMaker, pool: Samples, settings: JudgeSettings, step: int) -> Batch:
    """Joins new pictures with pictures of the pool; mirrors half of them, and moves them by up to a pixel."""
    size, side = settings.batch_size, settings.model.resolution
    generator = generator_at(settings.seed, _STREAM, step)
    drawn = pool.take(generator.integers(0, len(pool.things), size // 2))
    fresh = maker.fresh(settings.seed, range(step * size, (step + 1) * size - size // 2), side)
    batch = {name: np.concatenate([rows, drawn.batch()[name]]) for name, rows in fresh.batch().items()}
    pixels = batch["pixels"]
    mirrored = generator.random(size) < 0.5
    pixels[mirrored] = pixels[mirrored, :, ::-1]
    # Borders are nearly always background, so pixels that wrap around to the other side do not show.
    moves = generator.integers(-1, 2, (size, 2))
    batch["pixels"] = np.stack(
        [np.roll(each, move, (0, 1)) for each, move in zip(pixels, moves, strict=True)]
    )
    return batch


def _at(
    log_probabilities: Float[Array, "batch classes"], rows: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    return jnp.take_along_axis(log_probabilities, rows[:, None], axis=1)[:, 0]


def _told(
    log_probabilities: Float[Array, "batch classes"], rows: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Returns the log probabilities of the right classes, and 0 where the picture does not tell the class."""
    return jnp.where(rows >= 0, _at(log_probabilities, jnp.maximum(rows, 0)), 0)
