"""Jobs are bound to a revision, and bound anew when its workers go."""

import pytest

from harness.fleet import another_card, card_of, say_goodbye, say_hello
from harness.gateway import GatewayHarness, MakeGateway, job_spec
from smalti.messages import Stage
from smalti.services.gateway.api.conversion import job_message
from smalti.services.gateway.database.tables import Job
from smalti.services.gateway.jobs.reading import first_lease
from smalti.services.gateway.models import HELLO_SECONDS, ModelCard
from smalti.services.gateway.work.binding import GRACE_SECONDS

LEASE = 120.0


class Rollout:
    """A gateway whose workers of one revision go while those of another are there."""

    def __init__(self, make_gateway: MakeGateway) -> None:
        self.elapsed = 0.0
        self.gateway: GatewayHarness = make_gateway(write=3, elapsed=lambda: self.elapsed, lease=LEASE)
        own = card_of(self.gateway)
        self.old, self.new = another_card(own, "1"), another_card(own, "2")
        say_hello(self.gateway, self.old)
        self.pass_time(HELLO_SECONDS, self.old)

    def replace(self, seconds: float = GRACE_SECONDS) -> None:
        """The workers of the new revision come, those of the old one go, and some time passes."""
        say_hello(self.gateway, self.new)
        say_goodbye(self.gateway, self.old)
        self.look()
        self.pass_time(seconds)

    def pass_time(self, seconds: float, *cards: ModelCard) -> None:
        """Lets time pass, in which workers say hello."""
        for _ in range(int(seconds // 5)):
            self.gateway.clock.advance(5)
            self.elapsed += 5
            say_hello(self.gateway, *(cards or [self.new]))

    def lose_hellos(self, seconds: float) -> None:
        """Lets time pass in which no hello arrives, as while the broker is away."""
        for _ in range(int(seconds // 5)):
            self.gateway.clock.advance(5)
            self.elapsed += 5
            self.look()

    def look(self) -> None:
        """Lets the gateway look at its models."""
        self.gateway.gateway.look_at_models()

    def create(self, *, card: ModelCard | None = None, pinned: bool = False) -> str:
        """Accepts a job of the old revision."""
        return self.gateway.jobs.create(job_spec(card=card or self.old, pinned=pinned)).job.id

    def revision(self, job: str) -> str:
        """Returns the last digit of the revision of a job, of its parameters and of its messages."""
        row = self.gateway.get(job).job
        assert row.revision == row.parameters["revision"]
        return str(row.revision)[-1]


@pytest.fixture
def rollout(make_gateway: MakeGateway) -> Rollout:
    return Rollout(make_gateway)


def test_job_that_was_not_sent_is_bound_anew(rollout: Rollout) -> None:
    job = rollout.create()
    version = rollout.gateway.get(job).job.version
    rollout.replace(0)
    assert rollout.revision(job) == "1"  # The workers may be back in a moment.
    rollout.pass_time(GRACE_SECONDS)
    assert rollout.revision(job) == "2"
    assert rollout.gateway.get(job).job.version > version
    (task,) = rollout.gateway.send()
    assert (task.revision, task.binding) == (rollout.new.revision, 0)
    assert task.routes[Stage.GENERATE] == rollout.new.parts[Stage.GENERATE]
    rollout.gateway.handle(*rollout.gateway.stages.run(task))
    assert rollout.gateway.state(job) == "succeeded"


def test_pinned_job_waits_and_says_so(rollout: Rollout) -> None:
    job = rollout.create(pinned=True)
    rollout.replace()
    assert rollout.revision(job) == "1"
    assert rollout.gateway.send() == []
    message = job_message(rollout.gateway.get(job), lambda key: None, full=True)
    assert message.trouble == f"waits for workers of {rollout.old.name} {rollout.old.revision}"
    say_hello(rollout.gateway, rollout.old, worker="again")
    rollout.look()
    assert job_message(rollout.gateway.get(job), lambda key: None, full=True).trouble == ""
    (task,) = rollout.gateway.send()
    rollout.gateway.handle(*rollout.gateway.stages.run(task))
    assert rollout.gateway.state(job) == "succeeded"


def test_lost_work_is_not_sent_to_queues_that_nobody_reads(rollout: Rollout) -> None:
    job, gateway = rollout.create(pinned=True), rollout.gateway
    assert len(gateway.send()) == 1
    rollout.replace()
    gateway.clock.advance(LEASE)
    rollout.elapsed += LEASE
    for _ in range(2):  # At first, a gateway that has not looked for long extends leases.
        assert gateway.send() == []
        gateway.clock.advance(LEASE)
    assert gateway.gateway.dispatcher.send_again() == 0
    say_hello(gateway, rollout.old, worker="again")
    (task,) = gateway.send()
    assert task.revision == rollout.old.revision
    gateway.handle(*gateway.stages.run(task))
    assert gateway.state(job) == "succeeded"


def test_message_that_nobody_has_read_does_no_harm_after_a_rollback(rollout: Rollout) -> None:
    job, stages = rollout.create(), rollout.gateway.stages
    (stale,) = rollout.gateway.send()
    rollout.replace()
    assert rollout.revision(job) == "2"
    (task,) = rollout.gateway.send()
    assert (task.revision, task.binding) == (rollout.new.revision, 1)
    # The old workers are back, and read what they find in their queue.
    stale_next, stale_event = stages.encode(stale)
    rollout.gateway.handle(stale_event)
    assert rollout.gateway.state(job) == "queued"
    assert stale.keys.outputs(Stage.ENCODE, stale.keys.encoding) != task.keys.outputs(
        Stage.ENCODE, task.keys.encoding
    )
    assert stale_next[0].work_key != stages.encode(task)[0][0].work_key
    for generate in stale_next:
        decode, generated = stages.generate(generate)
        rank, decoded = stages.decode(decode)
        rollout.gateway.handle(stages.draw_rows(generate, 1), generated, decoded, stages.rank(rank))
    row = rollout.gateway.get(job).job
    assert (row.state.value, row.rows_drawn, row.candidates_ranked) == ("queued", 0, 0)
    rollout.gateway.handle(*stages.run(task))
    assert rollout.gateway.state(job) == "succeeded"


def test_job_that_has_begun_waits_and_starts_over_when_its_workers_stay_away(rollout: Rollout) -> None:
    job, stages = rollout.create(), rollout.gateway.stages
    (task,) = rollout.gateway.send()
    generates, encoded = stages.encode(task)
    decode, generated = stages.generate(generates[0])
    rank, decoded = stages.decode(decode)
    rollout.gateway.handle(encoded, generated, decoded, stages.rank(rank))
    assert rollout.gateway.get(job).job.candidates_ranked == 4
    rollout.replace(LEASE - 5)
    assert rollout.revision(job) == "1"
    assert "waits for workers" in str(rollout.gateway.get(job).job.trouble)
    rollout.pass_time(5)
    row = rollout.gateway.get(job).job
    assert (rollout.revision(job), row.trouble, row.candidates_ranked, row.rows_drawn) == ("2", None, 0, 0)
    (task,) = rollout.gateway.send()
    rollout.gateway.handle(*stages.run(task))
    assert rollout.gateway.state(job) == "succeeded"


def test_job_that_has_begun_ends_where_it_began_if_its_workers_come_back(rollout: Rollout) -> None:
    job, stages = rollout.create(), rollout.gateway.stages
    (task,) = rollout.gateway.send()
    generates, encoded = stages.encode(task)
    rollout.gateway.handle(encoded)
    rollout.replace(60)
    say_hello(rollout.gateway, rollout.old, worker="again")
    for generate in generates:
        decode, generated = stages.generate(generate)
        rank, decoded = stages.decode(decode)
        rollout.gateway.handle(generated, decoded, stages.rank(rank))
    assert rollout.gateway.state(job) == "succeeded"
    assert rollout.revision(job) == "1"


def test_job_with_tokens_is_bound_only_to_the_same_codebook(rollout: Rollout) -> None:
    gateway = rollout.gateway
    tokens = tuple([1] * rollout.old.tokens)
    kept = gateway.jobs.create(job_spec(card=rollout.old, given=tokens[: 2 * rollout.old.side])).job.id
    rollout.new = another_card(rollout.old, "2", shares_pictures=False)
    rollout.replace()
    assert rollout.revision(kept) == "1"
    rollout.new = another_card(rollout.old, "3")
    say_hello(gateway, rollout.new)
    rollout.pass_time(GRACE_SECONDS)
    assert rollout.revision(kept) == "3"


def test_many_jobs_are_bound_anew_and_shared_out(rollout: Rollout) -> None:
    jobs = [rollout.create() for _ in range(130)]
    other = another_card(rollout.old, "3")
    say_hello(rollout.gateway, rollout.new, other)
    say_goodbye(rollout.gateway, rollout.old)
    rollout.look()
    rollout.pass_time(GRACE_SECONDS, rollout.new, other)
    found = [rollout.revision(job) for job in jobs]
    assert (found.count("2"), found.count("3")) == (65, 65)


def test_job_of_another_model_is_never_bound_anew(rollout: Rollout) -> None:
    other = another_card(rollout.old, "3", name="other")
    say_hello(rollout.gateway, other)
    job = rollout.create(card=other)
    say_goodbye(rollout.gateway, other)
    rollout.replace()
    assert rollout.revision(job) == "3"


def test_jobs_that_another_revision_can_draw_do_not_wait_behind_those_that_it_cannot(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalti.services.gateway.work.binding.BATCH_SIZE", 2)
    tokens = tuple([1] * (2 * rollout.old.side))
    kept = [rollout.gateway.jobs.create(job_spec(card=rollout.old, given=tokens)).job.id for _ in range(5)]
    job = rollout.create()
    say_goodbye(rollout.gateway, rollout.old)
    rollout.lose_hellos(15)  # All of them wait, and say so.
    assert rollout.gateway.get(job).job.trouble
    rollout.new = another_card(rollout.old, "2", shares_pictures=False)
    say_hello(rollout.gateway, rollout.new)
    rollout.pass_time(GRACE_SECONDS)
    assert rollout.revision(job) == "2"
    assert {rollout.revision(each) for each in kept} == {"1"}


def test_job_that_is_ranked_does_not_start_over(rollout: Rollout) -> None:
    job = rollout.create()
    (task,) = rollout.gateway.send()
    rollout.gateway.handle(rollout.gateway.stages.encode(task)[1])
    with rollout.gateway.gateway.context.database.write() as session:
        row = session.get_one(Job, job)
        row.candidates_ranked = row.candidates  # It waits for the store, or for the policy.
    rollout.replace(LEASE)
    row = rollout.gateway.get(job).job
    assert (rollout.revision(job), row.trouble, row.candidates_ranked) == ("1", None, row.candidates)


def test_no_work_is_lost_while_no_hello_arrives(rollout: Rollout) -> None:
    begun = rollout.create()
    (task,) = rollout.gateway.send()
    rollout.gateway.handle(rollout.gateway.stages.encode(task)[1])
    waiting = rollout.create()
    rollout.lose_hellos(3 * LEASE)
    # The workers of the settings' model may be there without a hello, or nobody.
    assert rollout.gateway.get(waiting).job.revision == card_of(rollout.gateway).revision
    assert rollout.revision(begun) == "1"


def test_workers_have_the_time_to_say_hello_after_a_gap(rollout: Rollout) -> None:
    job = rollout.create()
    rollout.gateway.clock.advance(60)
    rollout.elapsed += 60
    say_hello(rollout.gateway, rollout.new)
    rollout.pass_time(HELLO_SECONDS - 5)
    assert rollout.revision(job) == "1"
    say_hello(rollout.gateway, rollout.old, worker="again")
    rollout.pass_time(15, rollout.old, rollout.new)
    assert rollout.revision(job) == "1"


def test_rows_of_an_earlier_revision_are_not_shown(rollout: Rollout) -> None:
    job, stages = rollout.create(), rollout.gateway.stages
    (stale,) = rollout.gateway.send()
    (generate, *_), encoded = stages.encode(stale)
    rollout.gateway.handle(encoded, *(stages.draw_rows(generate, row) for row in (1, 2, 3)))
    rollout.replace(LEASE)
    assert rollout.revision(job) == "2"
    (task,) = rollout.gateway.send()
    (anew, *_), encoded = stages.encode(task)
    rollout.gateway.handle(encoded, stages.draw_rows(anew, 1), stages.draw_rows(generate, 1))
    since = first_lease(rollout.gateway.get(job).job)
    runs = rollout.gateway.gateway.watchers.preview_tokens.runs(job, since=since)
    assert {(run.start, run.lease) for run in runs} == {(0, task.lease)}
