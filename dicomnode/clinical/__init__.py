"""Scores and classes that a clinician reads: T-score, %YAM, wording."""
