"""What a model or its kind can't have done to it, said before any work."""

from __future__ import annotations

from hemorrhage.runtime.step import InputError


class RefusedError(InputError):
    """A method or step does not go with a model; the message is one line that says why."""
