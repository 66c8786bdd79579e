"""Notices of the ends of jobs, for webhooks. They are stored in the transaction that ends the job."""

import json
import uuid
from datetime import UTC, datetime

from google.rpc.status_pb2 import Status
from sqlalchemy.orm import Session

from smalti.services.gateway.database.clock import to_seconds
from smalti.services.gateway.database.commit import deliver_at_commit
from smalti.services.gateway.database.tables import PRIORITIES, Job
from smalti.services.gateway.jobs.reading import parameter_of


def announce_end(session: Session, job: Job, reason: str) -> None:
    """Stores a notice of the end of a job at the commit, if its tenant wants to be told.

    Args:
        session: the transaction that ends it.
        job: the job, which has ended.
        reason: why it failed, for programs; empty if it has not.
    """
    told = {
        "id": job.id,
        "version": job.version,
        "state": job.state.value,
        "request_id": job.request_id or "",
        "labels": job.labels or {},
        "priority": PRIORITIES[job.priority].value,
        "candidates": job.candidates,
        "pictures": parameter_of(job, "n", 0),
        "created": time_text(job.created),
        "ended": time_text(job.ended or job.created),
        "deleted": time_text(job.delete_at or job.created),
    }
    if reason:
        message = Status.FromString(job.error).message if job.error else ""
        told["error"] = {"reason": reason, "detail": message}
    asked = job.webhook or {}
    deliver_at_commit(
        session,
        id=str(uuid.uuid4()),
        tenant=job.tenant,
        subject=job.id,
        version=job.version,
        url=asked.get("url"),
        include_prompt=asked.get("include_prompt"),
        body=_body(job, told),
        body_with_prompt=_body(job, {**told, "prompt": parameter_of(job, "prompt", "")}),
        now=job.ended,
    )


def notice_body(kind: str, ended: int, data: dict[str, object]) -> str:
    """Returns the body of a notice.

    Args:
        kind: what has happened, such as "job.succeeded".
        ended: when, in microseconds.
        data: to what.
    """
    content = {"type": kind, "timestamp": time_text(ended), "data": data}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def time_text(microseconds: int) -> str:
    """Returns a time as webhooks tell it."""
    return datetime.fromtimestamp(to_seconds(microseconds), UTC).isoformat().replace("+00:00", "Z")


def _body(job: Job, told: dict[str, object]) -> str:
    return notice_body(f"job.{job.state.value}", job.ended or job.created, {"job": told})
