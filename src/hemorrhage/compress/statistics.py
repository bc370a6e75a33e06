"""Reading the statistics that the calibrate step wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hemorrhage.calibrate import triangle

if TYPE_CHECKING:
    from torch import Tensor


class Statistics:
    """The statistics of a calibration folder, read when asked for."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is an output of the calibrate step."""
        self._folder = folder

    def shared(self) -> dict[str, list[str]]:
        """``{first linear: [linears]}``: the linear layers of the decoder blocks that read the same input."""
        from safetensors import safe_open

        with safe_open(self._folder / "hessian.safetensors", framework="pt") as file:
            return json.loads(file.metadata()["shared"])

    def second_moment(self, first: str) -> Tensor:
        """Mean of x xᵀ over the calibration tokens for the input of linear ``first``: float32 [n, n]."""
        return triangle.square(self._vector(first))

    def norms(self, first: str) -> Tensor:
        """Root mean square of every input feature of linear ``first``: float32 [n].

        Wanda's ``norm2(X_j)`` over the square root of the number of tokens, which changes no order.
        """
        return triangle.diagonal(self._vector(first)).sqrt()

    def block_influence(self) -> list[float]:
        """ShortGPT's influence of every decoder block."""
        return json.loads((self._folder / "influence.json").read_text(encoding="utf-8"))["block_influence"]

    def _vector(self, first: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self._folder / "hessian.safetensors", framework="pt") as file:
            return file.get_tensor(first)
