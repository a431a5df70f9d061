"""The programs: receiver, worker, sender. They meet only in the database and the spool."""
