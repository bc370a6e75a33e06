"""A model that the pipeline trained itself: the train step's folder, adopted as any folder is."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.models.sources.origin import Origin, Spec
from hemorrhage.models.sources.path import adopt
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError


def fetch(spec: Spec, out: Path) -> Origin:
    """Put the model of the train step's folder ``spec["path"]`` into ``out``, or as it was after ``spec["at"]`` tokens.

    Raises InputError where it was not kept then, and where it is no whole model.
    """
    folder, at = Path(spec["path"]), spec.get("at")
    trained = read_manifest(folder)
    model = folder if at is None else folder / "snapshots" / str(at)
    if not model.is_dir():
        raise InputError(f"model.at: the model was not kept after {at} tokens")
    try:
        adopt(model, out)
    except InputError as problem:
        raise InputError(f"model.recipe: {problem}") from None
    return Origin(note(trained["tokens"], trained["heldout_loss"], at))


def note(tokens: int, loss: float, at: int | None) -> str:
    """Return the sentence on what the base is."""
    if at is not None:
        return f"The base is a model that this pipeline trained, as it was after {at:,} of {tokens:,} tokens."
    return f"The base is a model that this pipeline trained on {tokens:,} tokens; its held-out loss is {loss:.3f} nats."
