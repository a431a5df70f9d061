"""Which code a model was made by."""

import subprocess


def code_commit() -> str:
    """The commit of this repository as `git describe` names it, "dirty" where files differ; "unknown" outside a repository."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
