"""Alembic's environment.
`migrate` passes the connection, and everything runs in its transaction."""

from alembic import context

from llm_runtime.db import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    render_as_batch=True,  # SQLite can change a column only by copying its table.
)
with context.begin_transaction():
    context.run_migrations()
