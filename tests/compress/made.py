"""What the tests of methods give them: a layer, the specification of a variant, a run of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hemorrhage.compress.__main__ import compress


def spec(method: str, **settings: Any) -> dict[str, Any]:
    return {"sweep": "s", "method": method, "settings": settings, "seed": 0}


def layer(rows: int = 12, columns: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(300, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return weight, x.T @ x / len(x)


def run(out: Path, tiny: Path, parent: Path | None, calibration: Path, method: str, settings: dict[str, Any]) -> None:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(out, "v", tiny, parent, calibration, [], {**spec, "on": parent and "parent"})
