"""Whether a method goes with a model, asked before any work: by the compress step and by ``hemorrhage probe``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hemorrhage.models.refused import RefusedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.compress.method import Settings


def check_config(settings: Settings, folder: Path) -> None:
    """Raise RefusedError where the config.json of a model's folder rules settings out; the plan may not have known."""
    from hemorrhage.models.architecture import text_entries

    problem = settings.check(text_entries(folder))
    if problem:
        raise RefusedError(problem)


def check_model(settings: Settings, model: PreTrainedModel) -> str | None:
    """Raise RefusedError where the model itself does; changes nothing.

    Returns a sentence where it depends on what a calibration finds, else None.
    """
    from hemorrhage.models.linears import linears_of

    # Of none of them may two have one weight, whatever the method.
    linears_of(model, missing_ok=True)
    return settings.check_model(model)
