"""Runs the migrations over the connection of `Database.migrate`."""

from alembic import context

from smalti.services.gateway.database.schema import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
