"""Alembic's entry: run the migrations on the connection that `store.database` hands over."""

from alembic import context

from store.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
    # The caller holds the lock and commits; a half-done migration must not stay.
    transactional_ddl=False,
)
context.run_migrations()
