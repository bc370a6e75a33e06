"""The state of a training on disk: a job that was killed continues from it to the same bits.

``<out>.resume/state.safetensors`` has the parameters and buffers, AdamW's moments, torch's random state and the curve
so far. It appears whole (hemorrhage.runtime.artifact.whole). The order of the data follows from the seed and the step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.runtime.artifact import whole

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

SECONDS = 30.0
"""Work that may be lost."""

FILE = "state.safetensors"

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter."""

Curve = list[tuple[float, ...]]
"""A row per step: loss, held-out loss (NaN where it was not measured), gradient norm."""


class State:
    """The last saved state of a training, in ``folder``, which need not be there."""

    def __init__(self, folder: Path, model: PreTrainedModel, optimizer: Optimizer) -> None:
        self.file = folder / FILE
        self.model, self.optimizer = model, optimizer
        self._saved = time.monotonic()

    def restore(self) -> Curve:
        """Make model, optimizer and random state what they were; return the curve so far, empty where there is none."""
        import torch
        from safetensors.torch import load_file

        if not self.file.is_file():
            return []
        saved = load_file(self.file)
        torch.set_rng_state(saved["random"])
        with torch.no_grad():
            for name, value in self._weights().items():
                value.copy_(saved[f"model.{name}"])
        for name, parameter in self.model.named_parameters():
            moments = {key: saved[f"optimizer.{key}.{name}"] for key in MOMENTS if f"optimizer.{key}.{name}" in saved}
            if moments:
                self.optimizer.state[parameter] = moments
        return [tuple(row) for row in saved["curve"].tolist()]

    def save(self, curve: Curve) -> None:
        """Write the state where the last one is long ago."""
        if time.monotonic() - self._saved >= SECONDS:
            self._write(curve)
            self._saved = time.monotonic()

    def _write(self, curve: Curve) -> None:
        import torch
        from safetensors.torch import save_file

        content = {f"model.{name}": value.detach() for name, value in self._weights().items()}
        for name, parameter in self.model.named_parameters():
            moments: Mapping[str, Any] = self.optimizer.state.get(parameter, {})
            content |= {f"optimizer.{key}.{name}": moments[key] for key in MOMENTS if key in moments}
        content["random"] = torch.get_rng_state()
        content["curve"] = torch.tensor(curve, dtype=torch.float64)
        with whole(self.file) as scratch:
            save_file(content, scratch)

    def _weights(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
