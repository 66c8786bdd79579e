"""GeneratorService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate, Drawn, GenerationHandle, GenerationRequest
from smalti.errors import InvalidInputError
from smalti.messages import MAX_CANDIDATES, MAX_IN_CHUNK
from smalti.parameters import SamplingParameters, check_seed
from smalti.registry.spec import ModelSpec
from smalti.rpc.calls import deadline
from smalti.rpc.conversion import (
    encoding_of,
    given_tokens,
    priority_of,
    sampling_message,
    sampling_of,
    tokens_message,
)
from smalti.service.checks import check_number
from smalti.v1 import generator_pb2_grpc, model_pb2
from smalti.v1.generator_pb2 import (
    GenerateRequest,
    GenerateResponse,
    GenerationFinished,
    GenerationStarted,
    RowsDrawn,
)
from smalti.v1.tokens_pb2 import TokenRun


class GeneratorServicer(generator_pb2_grpc.GeneratorServiceServicer):
    """Draws for those who call; see `generator.proto`."""

    def __init__(self, engine: GeneratorEngine, spec: ModelSpec, model: model_pb2.ModelReference) -> None:
        """Takes the engine and the model that is loaded."""
        self._engine = engine
        self._spec = spec
        self._model = model

    async def Generate(  # noqa: D102, N802
        self, request: GenerateRequest, context: Any
    ) -> AsyncIterator[GenerateResponse]:
        seed, sampling, wanted = self._read(request)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Drawn | None] = asyncio.Queue()

        def tell(event: Drawn | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        handle = self._engine.submit(wanted, tell)
        handle.future.add_done_callback(lambda _: tell(None))
        try:
            side = self._spec.side
            yield GenerateResponse(
                started=GenerationStarted(
                    seed=seed, sampling=sampling_message(sampling), rows=side, columns=side
                )
            )
            while drawn := await _next_runs(events):
                yield GenerateResponse(rows=RowsDrawn(runs=_runs(handle, drawn)))
            tokens = handle.result()
            yield GenerateResponse(
                finished=GenerationFinished(pictures=[tokens_message(row) for row in tokens])
            )
        finally:
            handle.cancel()  # Where the call was broken off; it does nothing to a finished request.

    def _read(self, request: GenerateRequest) -> tuple[int, SamplingParameters, GenerationRequest]:
        """Returns the seed, the sampling parameters, and the request to the engine.

        Raises:
            InvalidInputError: a field cannot be used; names it by its path.
            ModelMismatchError: the encoding is of another model.
        """
        spec = self._spec
        encoding = encoding_of(request.encoding, self._model, spec.transformer.d_model)
        seed = check_seed(request.seed if request.HasField("seed") else None)
        check_number(len(request.candidates), MAX_IN_CHUNK, "candidates", "indices")
        for place, index in enumerate(request.candidates):
            if not 0 <= index < MAX_CANDIDATES:
                raise InvalidInputError(
                    f"candidates[{place}]", f"{index} is not between 0 and {MAX_CANDIDATES - 1}"
                )
            if index in request.candidates[:place]:
                raise InvalidInputError(f"candidates[{place}]", f"{index} is there twice")
        sampling = sampling_of(request.sampling, spec.folder.sampling)
        given = given_tokens(request.given, spec.tokens, spec.codebook_size, field="given")
        return (
            seed,
            sampling,
            GenerationRequest(
                encoding=_whole(encoding, spec.transformer.max_text_length),
                candidates=tuple(Candidate(seed, index, sampling) for index in request.candidates),
                priority=priority_of(request.priority),
                deadline=deadline(),
                given=given,
            ),
        )


def _whole(encoding: Encoding, places: int) -> Encoding:
    """Fills an encoding up to the places that the compiled programs have; padding is given no attention."""
    missing = places - len(encoding.mask)
    if missing < 0:
        raise InvalidInputError(
            "encoding.states.shape", f"has {len(encoding.mask)} places; the model reads {places}"
        )
    if not missing:
        return encoding
    states = np.concatenate([encoding.states, np.zeros((missing, encoding.states.shape[1]), np.float32)])
    return Encoding(states, np.concatenate([encoding.mask, np.zeros(missing, np.int32)]), encoding.cut)


async def _next_runs(events: "asyncio.Queue[Drawn | None]") -> list[Drawn]:
    """Waits for tokens and returns all that are there; nothing when no more will come."""
    found: list[Drawn] = []
    event = await events.get()
    while event is not None:
        found.append(event)
        if events.empty():
            return found
        event = events.get_nowait()
    if found:
        events.put_nowait(None)  # For the next time.
    return found


def _runs(handle: GenerationHandle, drawn: list[Drawn]) -> list[TokenRun]:
    """Returns tokens as runs, one for each candidate: those of one candidate follow each other without gaps."""
    by_candidate: dict[int, list[Drawn]] = {}
    for each in drawn:
        by_candidate.setdefault(each.candidate, []).append(each)
    return [
        TokenRun(
            candidate=handle.request.candidates[place].index,
            start=parts[0].start,
            tokens=np.concatenate([part.tokens for part in parts]).tolist(),
        )
        for place, parts in by_candidate.items()
    ]
