"""RankerService over gRPC."""

import asyncio
from typing import Any

import numpy as np

from smalti.engines.ranker import RankerEngine
from smalti.messages import MAX_IN_CHUNK, RouteKey
from smalti.models.clip import Ranking
from smalti.pictures import receive_image
from smalti.rpc.conversion import check_asked_part, features_message
from smalti.service.checks import check_count, checked_prompt
from smalti.service.compute import ComputeThread
from smalti.v1 import model_pb2, ranker_pb2_grpc
from smalti.v1.ranker_pb2 import ScoreRequest, ScoreResponse


class RankerServicer(ranker_pb2_grpc.RankerServiceServicer):
    """Scores the pictures of gRPC calls."""

    def __init__(
        self,
        *,
        engine: RankerEngine,
        compute: ComputeThread,
        model: model_pb2.ModelReference,
        key: RouteKey,
    ) -> None:
        """Serves a loaded engine.

        Args:
            engine: the ranker.
            compute: the thread in which the ranker runs.
            model: the loaded model.
            key: the key of the files that it works with.
        """
        self._engine = engine
        self._compute = compute
        self._model = model
        self._key = key

    async def Score(self, request: ScoreRequest, context: Any) -> ScoreResponse:  # noqa: D102, N802
        check_asked_part(request, self._model, self._key)
        prompt = checked_prompt(request.prompt)
        check_count(len(request.images), MAX_IN_CHUNK, field="images", noun="pictures")
        rankings: list[Ranking] = []
        with self._compute.permit():
            # One batch at a time, because decompressed pictures may be large.
            step = self._engine.batch_size
            for start in range(0, len(request.images), step):
                pictures = [
                    await receive_image(request.images[index], f"images[{index}]")
                    for index in range(start, min(start + step, len(request.images)))
                ]
                ranking = self._compute.submit(
                    lambda pictures=pictures: self._engine.look(prompt, pictures)  # type: ignore[misc]
                )
                rankings.append(await asyncio.wrap_future(ranking))
        features = np.concatenate([ranking.features for ranking in rankings])
        return ScoreResponse(
            scores=[score for ranking in rankings for score in ranking.scores.tolist()],
            features=features_message(features) if request.include_features else None,
        )
