"""The learned model: torch lives here and in `training` only."""
