"""GeneratorService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.given import without_tiles
from smalti.engines.generator.requests import Candidate, GenerationHandle, GenerationRequest, TokenRun
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
from smalti.service.checks import check_count
from smalti.v1 import generator_pb2_grpc, model_pb2
from smalti.v1.generator_pb2 import (
    GenerateRequest,
    GenerateResponse,
    GenerationFinished,
    GenerationStarted,
    RowsDrawn,
)
from smalti.v1.tokens_pb2 import TokenRun as TokenRunMessage


class GeneratorServicer(generator_pb2_grpc.GeneratorServiceServicer):
    """Generates image tokens for gRPC calls."""

    def __init__(self, *, engine: GeneratorEngine, spec: ModelSpec, model: model_pb2.ModelReference) -> None:
        """Serves a loaded engine.

        Args:
            engine: the generator.
            spec: the sizes of the loaded model.
            model: the loaded model.
        """
        self._engine = engine
        self._spec = spec
        self._model = model

    async def Generate(  # noqa: D102, N802
        self, request: GenerateRequest, context: Any
    ) -> AsyncIterator[GenerateResponse]:
        seed, sampling, wanted = self._read(request)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[TokenRun | None] = asyncio.Queue()

        def tell(event: TokenRun | None) -> None:
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
            handle.cancel()  # Has no effect on a finished request.

    def _read(self, request: GenerateRequest) -> tuple[int, SamplingParameters, GenerationRequest]:
        """Returns the seed, the sampling parameters, and the request to the engine.

        Raises:
            InvalidInputError: a field is invalid; names it by its path.
            ModelMismatchError: another model made the encoding.
        """
        spec = self._spec
        encoding = encoding_of(request.encoding, self._model, spec.transformer.d_model)
        seed = check_seed(request.seed if request.HasField("seed") else None)
        check_count(len(request.candidates), MAX_IN_CHUNK, field="candidates", noun="indices")
        for position, index in enumerate(request.candidates):
            if not 0 <= index < MAX_CANDIDATES:
                raise InvalidInputError(
                    f"candidates[{position}]", f"{index} is not between 0 and {MAX_CANDIDATES - 1}"
                )
            if index in request.candidates[:position]:
                raise InvalidInputError(f"candidates[{position}]", f"{index} occurs twice")
        sampling = sampling_of(request.sampling, spec.folder.sampling)
        given = _given(request, spec)
        return (
            seed,
            sampling,
            GenerationRequest(
                encodings=(_padded(encoding, spec.transformer.max_text_length),),
                candidates=tuple(
                    Candidate(seed, index, sampling, given=given) for index in request.candidates
                ),
                priority=priority_of(request.priority),
                deadline=deadline(),
            ),
        )


def _given(request: GenerateRequest, spec: ModelSpec) -> tuple[int, ...]:
    """Returns the given tokens of a request."""
    if not request.redrawn_tiles:
        return given_tokens(request.given, spec.tokens, spec.codebook_size, field="given")
    whole = given_tokens(request.given, spec.tokens, spec.codebook_size, field="given", whole=True)
    return without_tiles(whole, request.redrawn_tiles, field="redrawn_tiles")


def _padded(encoding: Encoding, length: int) -> Encoding:
    """Pads an encoding to the length that the compiled programs have; the mask hides the padding."""
    missing = length - len(encoding.mask)
    if missing < 0:
        raise InvalidInputError(
            "encoding.states.shape", f"is {len(encoding.mask)} long; the model reads at most {length}"
        )
    if not missing:
        return encoding
    states = np.concatenate([encoding.states, np.zeros((missing, encoding.states.shape[1]), np.float32)])
    return Encoding(states, np.concatenate([encoding.mask, np.zeros(missing, np.int32)]), encoding.cut)


async def _next_runs(events: "asyncio.Queue[TokenRun | None]") -> list[TokenRun]:
    """Waits for tokens and returns all that are available; an empty list if no more will come."""
    found: list[TokenRun] = []
    event = await events.get()
    while event is not None:
        found.append(event)
        if events.empty():
            return found
        event = events.get_nowait()
    if found:
        events.put_nowait(None)  # For the next call.
    return found


def _runs(handle: GenerationHandle, drawn: list[TokenRun]) -> list[TokenRunMessage]:
    """Returns tokens as one run for each candidate; the tokens of a candidate are contiguous."""
    by_candidate: dict[int, list[TokenRun]] = {}
    for each in drawn:
        by_candidate.setdefault(each.candidate, []).append(each)
    return [
        TokenRunMessage(
            candidate=handle.request.candidates[place].index,
            start=parts[0].start,
            tokens=np.concatenate([part.tokens for part in parts]).tolist(),
        )
        for place, parts in by_candidate.items()
    ]
