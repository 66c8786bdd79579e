"""The rows of the matrix, in order."""

from typing import Final

from faults.matrix import Row
from faults.rows import (
    broker,
    clients,
    database,
    gateway,
    kinds,
    pictures,
    refiner,
    revisions,
    store,
    versions,
    watchers,
    workers,
)

ROWS: Final[dict[str, Row]] = {
    row.name: row
    for row in (
        workers.killed_at_work,
        workers.killed_between,
        workers.told_to_end,
        workers.engine_fails,
        broker.broker_away,
        broker.alarm,
        broker.broker_refuses,
        broker.broker_out_of_reach,
        broker.duplicates,
        broker.poison,
        broker.unsigned,
        workers.deadly_prompt,
        workers.raising_prompt,
        store.store_in_trouble,
        store.objects_harmed,
        database.no_room,
        database.database_hangs,
        database.migration_fails,
        clients.burst,
        clients.taken_back,
        broker.too_slow,
        kinds.two_kinds_of_decoder,
        watchers.thousand_watchers,
        pictures.bombs,
        workers.same_request,
        refiner.refiner_fails,
        store.foreign_rules,
        store.store_hangs,
        versions.old_gateway,
        versions.old_workers,
        versions.together,
        versions.update,
        revisions.rollout,
        gateway.gateway_killed,
        gateway.gateway_paused,
        gateway.gateway_cut_off,
        database.one_gateway_suspended,
    )
}
