"""What must survive a power cut: ledger (database) and spool (files)."""
