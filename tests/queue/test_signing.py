"""Signed messages on real brokers: only messages with a trusted signature are accepted."""

from pathlib import Path

import pytest

from harness.queue import HARMLESS_WARNINGS, QueueHarness, dead, gather, settings_for, task
from harness.servers import Server
from harness.signing import certificate
from smalti.errors import InvalidInputError
from smalti.queue import (
    BrokerPublisher,
    BrokerSettings,
    Outcome,
    celery_application,
)
from smalti.queue.delivery import DEAD_REASON_HEADER

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]


def test_only_signed_messages_are_accepted(broker: Server, tmp_path: Path) -> None:
    trusted, foreign = tmp_path / "trusted", tmp_path / "foreign"
    trusted.mkdir()
    foreign.mkdir()

    def signing(folder: Path, name: str) -> BrokerSettings:
        key, public = certificate(folder, name)
        return settings_for(broker, signing_key=key, signing_certificate=public, signing_trusted=folder)

    # kombu has one signer per process, the last that was set up, so the stranger signs first.
    stranger = BrokerPublisher(signing(foreign, "stranger"))
    stranger.publish(task("stranger"))
    stranger.close()
    plain = BrokerPublisher(settings_for(broker))
    plain.publish(task("unsigned"))
    plain.close()
    queue_harness = QueueHarness(signing(trusted, "ours"))
    try:
        queue_harness.publisher.publish(task("ours"))
        queue_harness.work()
        queue_harness.wait_for(Outcome.DONE)
        found = gather(lambda: dead(queue_harness.settings), lambda found: len(found) >= 2)
        reasons = sorted(headers[DEAD_REASON_HEADER] for _, headers in found)
        assert any("not accepted" in reason for reason in reasons), reasons
        assert any("cannot be read" in reason for reason in reasons), reasons
        assert queue_harness.begun == ["ours"]
    finally:
        queue_harness.stop()


def test_signing_settings_go_together(tmp_path: Path) -> None:
    key, public = certificate(tmp_path, "ours")
    with pytest.raises(ValueError, match="missing: SMALTI_BROKER_SIGNING_TRUSTED"):
        BrokerSettings(signing_key=key, signing_certificate=public)
    with pytest.raises(InvalidInputError, match="SMALTI_BROKER_SIGNING_KEY"):
        celery_application(
            BrokerSettings(
                signing_key=tmp_path / "none", signing_certificate=public, signing_trusted=tmp_path
            )
        )
