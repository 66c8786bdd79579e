"""Which models can be drawn: hellos, the choice of a revision, routes, windows, and what the calls say of it."""

from collections import Counter

import pytest

from harness.fleet import STAGES, another_card, card_of, hello, say_goodbye, say_hello
from harness.gateway import GatewayHarness, MakeGateway, job_spec
from smalti.errors import InvalidInputError, ModelNotFoundError, UnavailableError
from smalti.messages import Stage
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.metrics import gauges
from smalti.services.gateway.models import ListedRevision, list_revisions, retire
from tests.services.gateway.conftest import needs_postgres


def names(gateway: GatewayHarness) -> list[str]:
    """Returns the revisions that can be drawn, by the first digit of each."""
    return [state.card.revision[7] for state in gateway.gateway.context.catalogue.fleet.available]


def list_revisions_of(gateway: GatewayHarness) -> list[ListedRevision]:
    """Returns the list of revisions of an operator."""
    with gateway.gateway.context.database.read() as session:
        return list_revisions(session, to_microseconds(gateway.clock()))


def chosen(gateway: GatewayHarness, jobs: int, name: str = "") -> Counter[str]:
    """Returns how many of some new jobs each revision gets, by its last digit."""
    catalogue = gateway.gateway.context.catalogue
    return Counter(catalogue.choose(name).card.revision[-1] for _ in range(jobs))


def test_without_hellos_the_configured_model_is_drawn_through_the_old_queues(gateway: GatewayHarness) -> None:
    gateway.gateway.look_at_models()
    job = gateway.create()
    (task,) = gateway.send()
    assert task.queue == "smalti.encode.interactive"
    assert task.version == 2
    assert not task.routes
    row = gateway.get(job).job
    assert (row.revision, row.pinned) == (card_of(gateway).revision, False)


def test_new_jobs_are_shared_out_by_slots(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    own = card_of(gateway)
    one, two = another_card(own, "1"), another_card(own, "2")
    say_hello(gateway, one, slots=6)
    say_hello(gateway, two, slots=2)
    assert chosen(gateway, 8) == {"1": 6, "2": 2}
    assert chosen(gateway, 4) == {"1": 3, "2": 1}
    # The configured model has no workers that say hello, and others of its name have.
    assert own.revision[7] not in names(gateway) or own.revision[7] in "12"
    say_goodbye(gateway, one)
    assert chosen(gateway, 3) == {"2": 3}
    say_goodbye(gateway, two)
    assert chosen(gateway, 1) == {own.revision[-1]: 1}


def test_messages_have_routes_to_the_stages_with_workers(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    own = card_of(gateway)
    say_hello(gateway, own, stages=STAGES[:2])
    gateway.create()
    assert gateway.send() == []  # The others may not have said hello yet.
    gateway.clock.advance(15)
    say_hello(gateway, own, stages=STAGES[:2])
    (task,) = gateway.send()
    assert task.version == 3
    assert task.tenant == "default"
    assert task.routes == {stage: own.parts[stage] for stage in STAGES[:2]}
    assert task.queue == f"smalti.encode.{own.parts[Stage.ENCODE]}.interactive"


def test_workers_that_are_gone_for_a_moment_keep_their_queues(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    own = card_of(gateway)
    say_hello(gateway, own)
    gateway.clock.advance(20)
    gateway.gateway.look_at_models()
    gateway.create()
    (task,) = gateway.send()
    assert task.queue == f"smalti.encode.{own.parts[Stage.ENCODE]}.interactive"
    gateway.clock.advance(45)
    gateway.gateway.look_at_models()
    gateway.create()
    (task,) = gateway.send()
    assert task.queue == "smalti.encode.interactive"


def test_gateway_that_writes_version_2_sends_to_its_own_model_only(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=2)
    own = card_of(gateway)
    other = another_card(own, "1")
    say_hello(gateway, own, other)
    assert chosen(gateway, 4) == {own.revision[-1]: 4}
    gateway.create()
    (task,) = gateway.send()
    assert (task.version, task.routes) == (2, {})
    with pytest.raises(ModelNotFoundError):
        gateway.gateway.context.catalogue.choose(revision=other.revision)


def test_workers_go_when_they_say_so_or_are_silent(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    one = another_card(card_of(gateway), "1", name="other")
    say_hello(gateway, one)
    assert chosen(gateway, 1, "other") == {"1": 1}
    late = hello(one, Stage.RANK, sent=gateway.clock() - 1)
    say_goodbye(gateway, one, stages=[Stage.RANK])
    gateway.gateway.hellos.add(late)  # It has waited in the queue, and changes nothing.
    gateway.gateway.look_at_models()
    with pytest.raises(UnavailableError, match="no workers now") as error:
        chosen(gateway, 1, "other")
    assert error.value.retry_after
    say_hello(gateway, one)  # A new rank worker has another id; this one comes back in the next second.
    assert chosen(gateway, 1, "other") == {"1": 1}
    gateway.clock.advance(14.9)
    gateway.gateway.look_at_models()
    assert chosen(gateway, 1, "other") == {"1": 1}
    gateway.clock.advance(0.2)
    gateway.gateway.look_at_models()
    with pytest.raises(UnavailableError):
        chosen(gateway, 1, "other")


def test_hellos_that_have_waited_do_not_count_but_other_clocks_do(make_gateway: MakeGateway) -> None:
    elapsed = 0.0
    gateway = make_gateway(write=3, elapsed=lambda: elapsed)
    one = another_card(card_of(gateway), "1", name="other")
    begin = gateway.clock()
    for number in range(3):  # They were sent in time, by workers that are gone, and are read all at once.
        say_hello(gateway, one, sent=begin - 60 + 5 * number)
    with pytest.raises(ModelNotFoundError):
        chosen(gateway, 1, "other")
    gateway.clock.advance(5)
    elapsed += 5
    say_hello(gateway, one, sent=begin - 60 + 15)  # The worker's clock is a minute behind.
    assert chosen(gateway, 1, "other") == {"1": 1}


def test_unknown_models_are_not_found_and_the_error_names_those_there_are(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    own = card_of(gateway)
    say_hello(gateway, own, another_card(own, "1", name="other"))
    catalogue = gateway.gateway.context.catalogue
    for name, revision in (("nothing", ""), (own.name, "sha256:" + 64 * "9"), ("other", own.revision)):
        with pytest.raises(ModelNotFoundError, match=f"can draw with {own.name}, other"):
            catalogue.choose(name, revision)


def test_retired_revision_gets_jobs_only_if_it_is_named_or_alone(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    own = card_of(gateway)
    one, two = another_card(own, "1"), another_card(own, "2")
    say_hello(gateway, one, two)
    catalogue = gateway.gateway.context.catalogue
    with gateway.gateway.context.database.write() as session:
        assert retire(session, "1111", 1) == one.revision
        for wrong in ("", "0" * 64, "nothing"):
            with pytest.raises(InvalidInputError, match="no revision begins"):
                retire(session, wrong, 1)
    listed = {each.revision: (each.slots, each.missing, each.retired) for each in list_revisions_of(gateway)}
    assert (listed[one.revision], listed[two.revision]) == ((8, (), 1), (8, (), None))
    gateway.gateway.look_at_models()
    assert chosen(gateway, 4) == {"2": 4}
    assert catalogue.choose(revision=one.revision).card.revision == one.revision
    say_goodbye(gateway, two)
    assert chosen(gateway, 1) == {"1": 1}


def test_each_revision_has_a_window_of_its_own(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    own = card_of(gateway)
    one, other = another_card(own, "1"), another_card(own, "2", name="other")
    say_hello(gateway, one, slots=4)
    say_hello(gateway, other, slots=8)
    for _ in range(3):
        gateway.jobs.create(job_spec(card=other))
        gateway.jobs.create(job_spec(card=one))
    say_goodbye(gateway, other)
    sent = gateway.send()
    assert {task.revision for task in sent} == {one.revision}
    assert sum(len(chunk.candidates) for task in sent for chunk in task.chunks) == 8
    say_hello(gateway, other, slots=8, worker="new")
    sent = gateway.send()
    assert {task.revision for task in sent} == {other.revision}
    assert sum(len(chunk.candidates) for task in sent for chunk in task.chunks) == 16


def test_window_of_the_settings_bounds_all_revisions_together(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3, window=16, chunk=2)
    own = card_of(gateway)
    one, other = another_card(own, "1"), another_card(own, "2", name="other")
    say_hello(gateway, one, other, slots=16)
    for _ in range(4):
        gateway.jobs.create(job_spec(card=other))
        gateway.jobs.create(job_spec(card=one))
    sent = gateway.send()
    assert Counter(task.revision[-1] for task in sent for chunk in task.chunks for _ in chunk.candidates) == {
        "1": 8,
        "2": 8,
    }


def test_work_of_a_revision_that_is_gone_fills_no_window(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3, window=16)
    own = card_of(gateway)
    one, other = another_card(own, "1"), another_card(own, "2", name="other")
    say_hello(gateway, one, other, slots=8)
    for _ in range(2):
        gateway.jobs.create(job_spec(card=other))
    assert len(gateway.send()) == 2
    gateway.jobs.create(job_spec(card=one))
    assert gateway.send() == []
    say_goodbye(gateway, other)
    assert len(gateway.send()) == 1


def test_metrics_tell_of_each_revision_and_of_few(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    own = card_of(gateway)
    cards = [another_card(own, f"{number:x}", name=f"m{number}") for number in range(1, 16)]
    say_hello(gateway, *cards, slots=4)
    for _ in range(2):
        gateway.jobs.create(job_spec(card=cards[0]))
    assert len(gateway.send()) == 1
    read = gauges(gateway.gateway.context)
    label = f"m1@{12 * '1'}"
    assert [
        read[name]()[label]  # type: ignore[index]
        for name in ("revision_slots", "revision_candidates_sent", "revision_candidates_waiting")
    ] == [4, 8, 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smalti.services.gateway.metrics.MAX_REVISIONS", 3)
        found = read["revision_slots"]()
    assert isinstance(found, dict)
    assert (len(found), sum(found.values())) == (4, 60)


def test_sizes_of_a_job_are_those_of_its_revision(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    own = card_of(gateway)
    big = another_card(
        own, "1", shares_pictures=False, name="big", rows=8, columns=8, image_width=64, image_height=64
    )
    say_hello(gateway, big)
    job = gateway.jobs.create(job_spec(card=big, candidates=2, n=1)).job
    assert job.rows == 16
    (task,) = gateway.send()
    gateway.stages.tokens = 64
    (generate,), encoded = gateway.stages.encode(task)
    gateway.handle(encoded, gateway.stages.draw_rows(generate, 3))
    assert gateway.get(job.id).job.rows_drawn == 6
    runs = gateway.gateway.watchers.preview_tokens.runs(job.id)
    assert [(run.start, len(run.tokens)) for run in runs] == [(16, 8), (16, 8)]


@needs_postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_gateways_agree_on_what_can_be_drawn(make_gateway: MakeGateway) -> None:
    first, second = make_gateway(write=3), make_gateway(write=3)
    one = another_card(card_of(first), "1", name="other")
    say_hello(first, one)
    second.gateway.look_at_models()
    assert chosen(second, 1, "other") == {"1": 1}
    assert second.gateway.context.catalogue.fleet.get(one.revision).card.content == one.content  # type: ignore[union-attr]
    changed = another_card(one, "1", name="other", description="another text")
    say_hello(first, changed)
    second.gateway.look_at_models()
    assert second.gateway.context.catalogue.fleet.card(one.revision).message.description == "another text"
    second.clock.advance(1)
    say_goodbye(second, one)
    first.gateway.look_at_models()
    with pytest.raises(UnavailableError):
        chosen(first, 1, "other")


def test_revision_that_nobody_serves_is_forgotten_after_its_jobs(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=3)
    one = another_card(card_of(gateway), "1", name="other")
    say_hello(gateway, one)
    job = gateway.jobs.create(job_spec(card=one, retention=10.0)).job.id
    gateway.cancel(job)
    catalogue = gateway.gateway.context.catalogue
    gateway.clock.advance(31 * 24 * 3600)
    catalogue.refresh()
    assert catalogue.forget() == 0
    gateway.pass_time(0)
    assert catalogue.forget() == 1
    assert catalogue.refresh().get(one.revision) is None
