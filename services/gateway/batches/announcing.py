"""Notices of the ends of batches, for webhooks. They are stored in the transaction that ends the batch."""

import uuid

from google.rpc.status_pb2 import Status
from sqlalchemy.orm import Session

from smalti.services.gateway.database.commit import deliver_at_commit
from smalti.services.gateway.database.tables import Batch
from smalti.services.gateway.jobs.notices import notice_body, time_text


def announce_end(session: Session, batch: Batch, reason: str) -> None:
    """Stores a notice of the end of a batch at the commit, if its tenant wants to be told.

    Args:
        session: the transaction that ends it.
        batch: the batch, which has ended.
        reason: why it failed, for programs; empty if it has not.
    """
    ended = batch.ended or batch.created
    told = {
        "id": batch.id,
        "version": batch.version,
        "state": batch.state.value,
        "request_id": batch.request_id or "",
        "name": batch.name,
        "labels": batch.labels or {},
        "prompts": batch.prompts,
        "prompts_drawn": batch.drawn,
        "prompts_failed": batch.failed,
        "prompts_invalid": batch.invalid,
        "pictures": batch.pictures,
        "created": time_text(batch.created),
        "ended": time_text(ended),
        "deleted": time_text(batch.delete_at or ended),
    }
    if reason:
        message = Status.FromString(batch.error).message if batch.error else ""
        told["error"] = {"reason": reason, "detail": message}
    asked = batch.webhook or {}
    body = notice_body(f"batch.{batch.state.value}", ended, {"batch": told})
    deliver_at_commit(
        session,
        id=str(uuid.uuid4()),
        tenant=batch.tenant,
        subject=batch.id,
        version=batch.version,
        url=asked.get("url"),
        include_prompt=asked.get("include_prompt"),
        body=body,
        body_with_prompt=body,
        now=ended,
    )
