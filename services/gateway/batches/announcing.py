"""Notices of the ends of batches, for webhooks. They are stored in the transaction that ends the batch."""

from sqlalchemy.orm import Session

from smalti.services.gateway.database.tables import Batch
from smalti.services.gateway.jobs.notices import store_notice


def announce_end(session: Session, batch: Batch, reason: str) -> None:
    """Stores a notice of the end of a batch at the commit, if its tenant wants to be told.

    Args:
        session: the transaction that ends it.
        batch: the batch, which has ended.
        reason: why it failed, for programs; empty if it has not.
    """
    told = {
        "name": batch.name,
        "prompts": batch.prompts,
        "prompts_drawn": batch.drawn,
        "prompts_failed": batch.failed,
        "prompts_invalid": batch.invalid,
        "pictures": batch.pictures,
    }
    store_notice(session, "batch", batch, told, reason)
