"""Alembic migrations of the ledger; run by `storage.database.upgrade`."""
