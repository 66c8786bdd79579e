"""Notices of the ends of jobs and batches, for webhooks, stored in the transaction that ends one."""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

from google.rpc.status_pb2 import Status
from sqlalchemy.orm import Session

from smalti.services.gateway.database.clock import to_seconds
from smalti.services.gateway.database.commit import deliver_at_commit
from smalti.services.gateway.database.tables import PRIORITIES, Batch, Job
from smalti.services.gateway.jobs.reading import parameter_of


def announce_end(session: Session, job: Job, reason: str) -> None:
    """Stores a notice of the end of a job at the commit, if its tenant wants to be told.

    Args:
        session: the transaction that ends it.
        job: the job, which has ended.
        reason: why it failed, for programs; empty if it has not.
    """
    told = {
        "priority": PRIORITIES[job.priority].value,
        "candidates": job.candidates,
        "pictures": parameter_of(job, "n", 0),
    }
    store_notice(session, "job", job, told, reason, private={"prompt": parameter_of(job, "prompt", "")})


def store_notice(
    session: Session,
    kind: str,
    row: Job | Batch,
    told: Mapping[str, object],
    reason: str,
    *,
    private: Mapping[str, object] = {},
) -> None:
    """Stores a notice of an end at the commit, if the tenant wants to be told.

    Args:
        session: the transaction that ends it.
        kind: what has ended, as webhooks call it.
        row: its row.
        told: what is told besides that which is told of everything.
        reason: as in `announce_end`.
        private: what is told only to those who want to see prompts.
    """
    ended = row.ended or row.created
    told = {
        "id": row.id,
        "version": row.version,
        "state": row.state.value,
        "request_id": row.request_id or "",
        "labels": row.labels or {},
        **told,
        "created": _time(row.created),
        "ended": _time(ended),
        "deleted": _time(row.delete_at or ended),
    }
    if reason:
        message = Status.FromString(row.error).message if row.error else ""
        told["error"] = {"reason": reason, "detail": message}

    def body(data: Mapping[str, object]) -> str:
        content = {"type": f"{kind}.{row.state.value}", "timestamp": _time(ended), "data": {kind: data}}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    asked = row.webhook or {}
    deliver_at_commit(
        session,
        id=str(uuid.uuid4()),
        tenant=row.tenant,
        subject=row.id,
        version=row.version,
        url=asked.get("url"),
        include_prompt=asked.get("include_prompt"),
        body=body(told),
        body_with_prompt=body({**told, **private}),
        now=ended,
    )


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(to_seconds(microseconds), UTC).isoformat().replace("+00:00", "Z")
