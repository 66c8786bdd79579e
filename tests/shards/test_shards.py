"""Shards as compute: the pictures of a prompt are those that it has alone, whatever else is in the shard."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.shards import LocalShard, batch_prompt
from harness.waiting import wait_until
from smalti.batches import BatchPrompt, PictureFormat, TarPicture, read_tar
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import GenerationHandle, GenerationRequest, TokenCallback, TokenRun
from smalti.errors import DamagedObjectError, RequestFailedError
from smalti.parameters import FREE, Refinement, SamplingParameters, SecondPass
from smalti.pictures import read_drawing
from smalti.pipeline import LocalPicture, Pipeline
from smalti.registry.spec import ModelSpec
from smalti.shards.encodings import ShardEncodings
from smalti.shards.generating import FILL, generate_shard
from smalti.shards.pictures import CandidatePicture, DrawnPrompt, read_pictures, write_pictures
from smalti.shards.readings import Reading
from smalti.shards.tokens import ShardTokens

PROMPTS = [
    batch_prompt(0, "a red cat"),
    batch_prompt(1, "A RED cat!", vary=True, candidates=6, n=3, diversity=0.5),
    batch_prompt(2, "a zebra in the rain", seed=7, sampling=SamplingParameters(top_k=5, temperature=0.7)),
    batch_prompt(3, "", problem="the row has no prompt", invalid=True),
    batch_prompt(4, "a red cat", seed=9, n=1, given=(1, 2, 3, 4, FREE, 5)),
    batch_prompt(5, "a big dog", seed=2**63 - 1, second_pass=SecondPass(upscale=2, refine=Refinement(steps=2))),
    batch_prompt(6, "forbidden words", problem="a policy refuses it"),
    batch_prompt(7, "a small cat", second_pass=SecondPass(upscale=2)),
]  # fmt: skip


def tar_pictures(path: Path) -> dict[str, TarPicture]:
    with path.open("rb") as file:
        return {picture.key: picture for picture in read_tar(path.name, file)}


def alone(pipeline: Pipeline, prompt: BatchPrompt) -> list[LocalPicture]:
    """Returns the pictures of a prompt as one process draws them."""
    second_pass = prompt.second_pass or SecondPass()
    return pipeline.generate(
        prompt.prompt,
        prompt.n,
        prompt.candidates,
        prompt.seed,
        **prompt.sampling.model_dump(),
        vary=prompt.vary,
        diversity=prompt.diversity,
        refine=second_pass.refine or False,
        upscale=second_pass.upscale,
    )


@pytest.fixture(scope="module")
def drawn(worded_pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tar of the shard."""
    path = tmp_path_factory.mktemp("shard") / "00000.tar"
    LocalShard(worded_pipeline, PROMPTS).draw(path)
    return path


@pytest.mark.filterwarnings("ignore::smalti.SmaltiWarning")
@pytest.mark.parametrize(
    "prompt", [each for each in PROMPTS if each.problem is None and not each.given], ids=lambda each: each.id
)
def test_pictures_are_those_of_the_pipeline(
    worded_pipeline: Pipeline, drawn: Path, prompt: BatchPrompt
) -> None:
    found = tar_pictures(drawn)
    for rank, expected in enumerate(alone(worded_pipeline, prompt)):
        picture = found[f"{prompt.key}-{rank}"]
        image, drawing = read_drawing(picture.content)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.image))
        assert drawing == expected.drawing.model_copy(update={"score": None})
        record = picture.record
        assert (record.candidate, record.rank, record.wording) == (
            expected.candidate,
            rank,
            expected.drawing.wording or expected.drawing.drawn or prompt.prompt,
        )
        assert record.score == pytest.approx(expected.score, abs=1e-3)
        assert record.effective_prompt == (expected.drawing.drawn or prompt.prompt)
        assert (record.width, record.height) == expected.image.size


def test_given_tokens_are_kept(worded_pipeline: Pipeline) -> None:
    shard = LocalShard(worded_pipeline, PROMPTS)
    prompt = PROMPTS[4]
    request, _ = worded_pipeline.request(
        prompt.prompt,
        range(prompt.candidates),
        seed=prompt.seed,
        sampling=prompt.sampling,
        vary=False,
        given=prompt.given,
    )
    expected = worded_pipeline.generator.generate(request.encodings, request.candidates)
    found = shard.tokens(shard.encodings()).tokens[4]
    np.testing.assert_array_equal(found, expected)
    assert expected[:, [0, 1, 2, 3, 5]].tolist() == [[1, 2, 3, 4, 5]] * 3


def test_every_prompt_has_a_result(worded_pipeline: Pipeline, drawn: Path, tmp_path: Path) -> None:
    output = LocalShard(worded_pipeline, PROMPTS).draw(tmp_path / "00000.tar")
    assert (tmp_path / "00000.tar").read_bytes() == drawn.read_bytes()
    states = [result.state for result in output.results]
    assert states == ["drawn", "drawn", "drawn", "invalid", "drawn", "drawn", "failed", "drawn"]
    assert [result.problem for result in output.results if result.problem] == [
        "the row has no prompt",
        "a policy refuses it",
    ]
    found = tar_pictures(drawn)
    assert (output.drawn, output.pictures) == (6, len(found)) == (6, 2 + 3 + 2 + 1 + 2 + 2)
    assert output.candidates(PROMPTS) == 5 * 3 + 6
    for result in output.results:
        assert result.tar == ("00000.tar" if result.state == "drawn" else None)
        for picture in result.pictures:
            assert found[picture.key].record.sha256 == picture.sha256
            assert len(found[picture.key].content) == picture.size


def test_webp_has_the_same_pictures_with_some_loss(
    worded_pipeline: Pipeline, drawn: Path, tmp_path: Path
) -> None:
    LocalShard(worded_pipeline, PROMPTS[:1]).draw(tmp_path / "a.tar", PictureFormat.WEBP)
    [key, *_] = found = tar_pictures(tmp_path / "a.tar")
    with Image.open(io.BytesIO(found[key].content)) as lossy:
        assert lossy.format == "WEBP"
        exact, _ = read_drawing(tar_pictures(drawn)[key].content)
        difference = np.abs(np.asarray(lossy, np.int16) - np.asarray(exact, np.int16))
    assert 0 < difference.mean() < 60


def failing(call: Callable[..., Any], fails: Callable[..., bool]) -> Callable[..., Any]:
    """Returns a call of an engine that fails over some requests."""

    def called(*arguments: Any) -> Any:
        if fails(*arguments):
            raise RequestFailedError("the engine fails over this request, and over no other")
        return call(*arguments)

    return called


@pytest.mark.parametrize("stage", ["encode", "decode", "look", "refine"])
def test_a_prompt_over_which_an_engine_fails_does_not_end_the_shard(
    worded_pipeline: Pipeline, drawn: Path, tmp_path: Path, stage: str
) -> None:
    shard = LocalShard(worded_pipeline, PROMPTS)
    guilty = 5
    tokens = shard.tokens(shard.encodings()).tokens[guilty]
    assert tokens is not None
    is_guilty: dict[str, Callable[..., bool]] = {
        "encode": lambda text: text == "a big dog",
        # One candidate is enough.
        "decode": lambda rows: bool((rows == tokens[2]).all(axis=1).any()),
        "look": lambda prompt, images: prompt == "a big dog",
        "refine": lambda inputs, second_pass, seed: second_pass.refine is not None,
    }
    setattr(shard, stage, failing(getattr(shard, stage), is_guilty[stage]))
    output = shard.draw(tmp_path / "00000.tar")
    failed = output.results[guilty]
    assert (failed.state, failed.pictures, failed.tar) == ("failed", (), None)
    assert failed.problem == "the engine fails over this request, and over no other"
    expected = {key: each for key, each in tar_pictures(drawn).items() if each.record.row != guilty}
    assert tar_pictures(tmp_path / "00000.tar") == expected


class BrokenEngine:
    """A generator that fails over the requests of one seed."""

    def __init__(self, engine: GeneratorEngine, seed: int) -> None:
        """Fails over one seed."""
        self._engine, self._seed = engine, seed
        self.slots, self.batch = engine.slots, engine.batch

    def submit(self, request: Any, on_tokens: Any = None) -> Any:
        """Submits a request; it fails at its first tokens if it has the seed."""

        def received(run: Any) -> None:
            if request.candidates[0].seed == self._seed:
                raise ValueError("no")

        return self._engine.submit(request, received)


def test_a_prompt_over_which_the_generator_fails_does_not_end_the_shard(worded_pipeline: Pipeline) -> None:
    prompts = [*PROMPTS, batch_prompt(8, "a cat", given=(10_000,)), batch_prompt(9, "a cat", candidates=20)]
    shard = LocalShard(worded_pipeline, prompts)
    expected = shard.tokens(shard.encodings())
    broken: Any = BrokenEngine(worded_pipeline.generator, 9)
    spec = ModelSpec.load(worded_pipeline.folder)
    found = generate_shard(prompts, shard.encodings(), broken, codebook_size=spec.codebook_size)
    problems = {row: each.problem for row, each in enumerate(found.readings) if each.problem}
    assert problems.keys() == {3, 4, 6, 8, 9}
    assert problems[4] == problems[9] == "the engine fails over this request, and over no other"
    assert "tokens must be below" in str(problems[8])
    for row in {*range(10)} - problems.keys():
        np.testing.assert_array_equal(found.tokens[row], expected.tokens[row])
    assert [found.tokens[row] for row in problems] == [None] * 5


class SteadyEngine:
    """A generator that makes its next dispatch when the shard has submitted all that it will before one ends."""

    def __init__(self, engine: GeneratorEngine, candidates: int) -> None:
        """Takes the place of the engine's batch.

        Args:
            engine: the engine.
            candidates: candidates of the shard; 0 for a shard that submits less, which is not waited for.
        """
        self.engine, self.batch = engine, self
        self.slots, self._batch = engine.slots, engine.batch
        self._candidates = candidates
        self._handles: list[GenerationHandle] = []
        self.active: list[int] = []
        """Slots in use at each dispatch."""
        self.finished = 0
        """Candidates that are finished."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def submit(self, request: GenerationRequest, on_tokens: TokenCallback) -> GenerationHandle:
        """Submits a request."""

        def received(run: TokenRun) -> None:
            on_tokens(run)
            self.finished += run.start + len(run.tokens) == self.image_length

        self._handles.append(handle := self.engine.submit(request, received))
        return handle

    def step(self) -> Any:
        """Makes a dispatch."""
        wait_until(self._settled)
        self.active.append(self.engine.active)
        return self._batch.step()

    def _settled(self) -> bool:
        sizes = [len(handle.request.candidates) for handle in list(self._handles)]
        running = sum(sizes) - self.finished
        return running >= FILL * self.slots or sum(sizes) >= self._candidates


@contextmanager
def steady(engine: GeneratorEngine, candidates: int) -> Iterator[Any]:
    """Yields a steady engine."""
    wait_until(lambda: engine.active == engine.waiting == 0)
    batch, made = engine.batch, SteadyEngine(engine, candidates)
    engine.batch = made
    try:
        yield made
    finally:
        engine.batch = batch


def test_slots_are_full_until_the_end_of_the_shard(worded_pipeline: Pipeline) -> None:
    engine, spec = worded_pipeline.generator, ModelSpec.load(worded_pipeline.folder)
    prompts = [batch_prompt(row, "a red cat", candidates=1 + row % 7) for row in range(40)]
    encodings = LocalShard(worded_pipeline, prompts).encodings()
    candidates = sum(prompt.candidates for prompt in prompts)
    dispatches = engine.batch.image_length // engine.batch.steps_per_dispatch
    with steady(engine, candidates) as watched:
        generate_shard(prompts, encodings, watched, codebook_size=spec.codebook_size)
    assert sum(watched.active) == candidates * dispatches
    assert sum(watched.active) / (len(watched.active) * engine.slots) >= 0.95
    # What is not full is the beginning, before all is submitted, and the end.
    assert set(watched.active[dispatches : -2 * dispatches]) == {engine.slots}


def test_slots_of_a_shard_are_limited(worded_pipeline: Pipeline) -> None:
    engine = worded_pipeline.generator
    shard = LocalShard(worded_pipeline, [batch_prompt(row, "a red cat", candidates=5) for row in range(3)])
    encodings = shard.encodings()
    expected = shard.tokens(encodings)
    spec = ModelSpec.load(worded_pipeline.folder)
    for limit in (1, 3):
        with steady(engine, 0) as watched:
            limited = generate_shard(
                shard.prompts, encodings, watched, codebook_size=spec.codebook_size, slots=limit
            )
        assert max(watched.active) == limit
        for one, other in zip(limited.tokens, expected.tokens, strict=True):
            np.testing.assert_array_equal(one, other)


def test_progress_is_told_and_a_check_ends_the_shard(worded_pipeline: Pipeline) -> None:
    shard = LocalShard(worded_pipeline, PROMPTS)
    told: list[tuple[int, int]] = []
    shard.tokens(shard.encodings(), on_progress=lambda done, total: told.append((done, total)))
    assert [total for _, total in told] == [21] * len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (21, 21)

    def stop(left: int) -> None:
        if left <= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard.tokens(shard.encodings(), check=stop)
    engine = worded_pipeline.generator
    wait_until(lambda: engine.active == engine.waiting == 0)


def test_encodings_are_stored_without_their_padding(worded_pipeline: Pipeline) -> None:
    shard = LocalShard(worded_pipeline, PROMPTS)
    encodings = shard.encodings()
    exact = worded_pipeline.encoder.encode("a red cat")
    stored = encodings.encodings["a red cat"]
    length = int(exact.mask.sum())
    assert 0 < length < len(exact.mask)
    np.testing.assert_array_equal(stored.mask, exact.mask)
    np.testing.assert_array_equal(stored.states[:length], exact.states[:length])
    assert not stored.states[length:].any()
    assert exact.states[length:].any()
    size = sum(int(each.mask.sum()) * each.states.shape[1] * 4 for each in encodings.encodings.values())
    assert len(encodings.to_bytes()) < size + 4000
    # Equal texts are there once, and what is not drawn is not encoded.
    assert "forbidden words" not in encodings.encodings


def test_pictures_between_stages_are_read_as_they_were_written(tmp_path: Path) -> None:
    drawn = [
        DrawnPrompt(
            prompt=PROMPTS[0],
            reading=Reading(effective_prompt="a cat"),
            pictures=(CandidatePicture(candidate=2, content=b"two", score=0.5),
                      CandidatePicture(candidate=0, content=b"none")),
        ),
        DrawnPrompt(prompt=PROMPTS[3], reading=Reading(problem="no")),
    ]  # fmt: skip
    prompts = [PROMPTS[0], PROMPTS[3]]
    path = tmp_path / "pictures.tar"
    write_pictures(path, drawn)
    assert list(read_pictures("pictures", path, prompts)) == drawn
    for wrong in (prompts[:1], [*prompts, PROMPTS[1]], prompts[::-1]):
        with pytest.raises(DamagedObjectError, match="pictures"):
            list(read_pictures("pictures", path, wrong))
    whole = path.read_bytes()
    for damaged in (b"", whole[:700], whole.replace(b'"candidate":2', b'"candidate":x')):
        path.write_bytes(damaged)
        with pytest.raises(DamagedObjectError, match="pictures"):
            list(read_pictures("pictures", path, prompts))


def test_damaged_tensors_are_refused(worded_pipeline: Pipeline) -> None:
    shard, spec = LocalShard(worded_pipeline, PROMPTS), ModelSpec.load(worded_pipeline.folder)
    encodings = shard.encodings()
    tokens = shard.tokens(encodings)
    for kind, content in ((ShardEncodings, encodings.to_bytes()), (ShardTokens, tokens.to_bytes())):
        assert kind.parse("x", content, PROMPTS, spec).to_bytes() == content
        for damaged in (b"", content[:-1], content[:40], content.replace(b"problem", b"pr0blem")):
            with pytest.raises(DamagedObjectError, match="x"):
                kind.parse("x", damaged, PROMPTS, spec)
        for wrong in (PROMPTS[:-1], [PROMPTS[1], *PROMPTS[1:]]):
            with pytest.raises(DamagedObjectError):
                kind.parse("x", content, wrong, spec)
