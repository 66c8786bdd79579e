"""The real stages around one store in memory: what the workers do, without a broker and without processes."""

import threading
from collections import deque
from dataclasses import replace
from typing import Any

from harness.objects import objects_of
from harness.service import bare_process
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.refiner import RefinerEngine
from smalti.messages import Event, Message, Stage, parse
from smalti.pipeline import Pipeline
from smalti.queue import BrokerPublisher, BrokerSettings, Delivery
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.shards import HandlerByKind
from smalti.services.decoder.handler import DecodeHandler
from smalti.services.decoder.shard_handler import DecodeShardHandler
from smalti.services.encoder.handler import EncodeHandler
from smalti.services.encoder.shard_handler import EncodeShardHandler
from smalti.services.generator.handler import GenerateHandler
from smalti.services.generator.shard_handler import GenerateShardHandler
from smalti.services.ranker.handler import RankHandler
from smalti.services.ranker.shard_handler import RankShardHandler
from smalti.services.refiner.handler import RefineHandler
from smalti.services.refiner.shard_handler import RefineShardHandler
from smalti.storage import MemoryStore
from smalti.text.rewording import Rewording, Rewriter


class CountingRewriter(Rewriter):
    """Records the prompts that it rewrites."""

    def __init__(self, words: Any) -> None:
        """Has rewritten nothing yet."""
        super().__init__(words)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> Rewording:
        """Records a prompt, and rewrites it."""
        self.prompts.append(prompt)
        return super().__call__(prompt)


class KeepingPublisher(BrokerPublisher):
    """A publisher without a broker, which keeps what is offered; the stages send nothing else themselves."""

    def __init__(self) -> None:
        """Has no messages."""
        super().__init__(BrokerSettings())
        self.offered: list[Message] = []

    def offer(self, message: Message) -> bool:
        """Keeps a message."""
        self.offered.append(message)
        return True


class RealStages:
    """The handlers of all stages around one store, without a broker."""

    def __init__(
        self, *, folder: ModelFolder, pipeline: Pipeline, generator: GeneratorEngine, compute: ComputeThread
    ) -> None:
        """Makes the handlers.

        Args:
            folder: the model.
            pipeline: its engines, except the generator.
            generator: its generator.
            compute: the thread in which the other engines run.
        """
        self.store = MemoryStore()
        publisher = KeepingPublisher()
        self.told = publisher.offered
        """The messages that the stages have offered, which may be lost."""
        self.generator = generator
        self.words_file = folder.words_file
        self.rewriter = CountingRewriter.load(folder.words_file)
        spec = ModelSpec.load(folder)
        self.refiner = refiner = RefinerEngine.load(spec)

        def common(service: str) -> dict[str, Any]:
            process = replace(bare_process(self.store, service), publisher=publisher)
            return {"process": process, "cancellations": Cancellations(self.store, 1.0)}

        computing: dict[str, Any] = {"compute": compute, "rewriter": self.rewriter}
        self.handlers: dict[Stage, HandlerByKind] = {
            Stage.ENCODE: HandlerByKind(
                EncodeHandler(folder=folder, engine=pipeline.encoder, **common("encoder"), **computing),
                EncodeShardHandler(folder=folder, engine=pipeline.encoder, **common("encoder"), **computing),
            ),
            Stage.GENERATE: HandlerByKind(
                GenerateHandler(spec=spec, engine=generator, **common("generator")),
                GenerateShardHandler(spec=spec, engine=generator, **common("generator")),
            ),
            Stage.DECODE: HandlerByKind(
                DecodeHandler(spec=spec, engine=pipeline.decoder, **common("decoder"), **computing),
                DecodeShardHandler(spec=spec, engine=pipeline.decoder, **common("decoder"), compute=compute),
            ),
            Stage.RANK: HandlerByKind(
                RankHandler(folder=folder, engine=pipeline.ranker, **common("ranker"), **computing),
                RankShardHandler(folder=folder, engine=pipeline.ranker, **common("ranker"), compute=compute),
            ),
            Stage.REFINE: HandlerByKind(
                RefineHandler(spec=spec, engine=refiner, **common("refiner"), compute=compute),
                RefineShardHandler(spec=spec, engine=refiner, **common("refiner"), compute=compute),
            ),
        }

    def run(self, first: Message) -> list[Event]:
        """Handles a task and all tasks that follow from it; returns the events."""
        return [message for message in self.messages(first) if isinstance(message, Event)]

    def messages(self, first: Message) -> list[Message]:
        """Handles a task and all tasks that follow from it; returns all messages."""
        waiting: deque[Message] = deque([first])
        handled: list[Message] = []
        while waiting:
            # Serialized, as a worker in another process receives it.
            message = parse(waiting.popleft().to_json())
            handled.append(message)
            if not isinstance(message, Event):
                waiting += self.handlers[message.stage_queue](Delivery(message, threading.Event()))
        return handled

    def objects(self, job: str) -> dict[str, bytes]:
        """Returns the objects of a job by their names in its folder."""
        return objects_of(self.store, job)

    def close(self) -> None:
        """Ends the threads of the handlers."""
        for handler in self.handlers.values():
            handler.close()
