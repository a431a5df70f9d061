"""Alembic's entry: runs in the connection (and transaction) that `storage.database.upgrade` hands over."""

from alembic import context

from dicomnode.storage.schema import Table

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transaction_per_migration=False,
    version_table="ledger_version",
)
context.run_migrations()
