"""Runs the migrations over the connection of `Database.migrate`."""

from alembic import context

from smalti.services.gateway.database.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
