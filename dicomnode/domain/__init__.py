"""Values that everything above speaks of: standard library and numpy only."""
