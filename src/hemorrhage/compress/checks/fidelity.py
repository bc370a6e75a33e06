"""How far each linear layer's weights, and what it gives, lie from the base model's: before anything is evaluated.

``layers.json`` of a checkpoint, for each linear layer that the base has, too, in the same shape: ``weight_sqnr``, 10
log10(‖W‖² / ‖W' - W‖²) in dB (at most ``LIMIT``); ``weight_outliers``, the base's max|W| over its root mean square.
Where the method was given a calibration set: ``output_sqnr``, the same of what the layer gives for the base's inputs,
10 log10(tr(W H Wᵀ) / tr(E H Eᵀ)) with the second moment H of the inputs, over ``ROWS`` rows spread evenly;
``input_outliers``, of the features' greatest absolute values the largest over the median; ``tokens``, how many
calibration tokens reached the layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.models.folder import dense_weights
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.models.weights import Weights

LAYERS = "layers.json"

EquivalentTransform = Literal["", "scaled", "rotated"]
"""A transform of weights that leaves the model's function unchanged: ``scaled``, rows and columns of layers against
each other; ``rotated``, the residual stream."""

LIMIT = 150.0
"""dB of a layer that was not altered: float32 rounds at 144.5."""

ROWS = 64
"""Rows whose outputs are compared. The SQNR is a ratio of sums over rows, which an eighth give within 0.5 dB."""

SWEEPS = 4
"""Alternations between the scales of rows and of columns."""


class Fidelity:
    """Collects the layers while somebody goes through the weights of an altered model."""

    def __init__(
        self,
        base: Weights,
        blocks: list[int] | None,
        transform: EquivalentTransform,
        calibration: Statistics | None,
        experts: Mapping[str, list[int]] | None = None,
    ) -> None:
        """``blocks``: the base's block that each block was made from, None where the order is the base's;
        ``experts``: mixture -> the base's expert that each of its experts was made from, where some were removed.
        ``transform``: ``scaled`` where a method scales rows and columns of layers against each other, which changes
        nothing and is taken out before comparing; ``rotated`` where it rotates the residual stream, after which
        nothing can be compared."""
        self._base, self._blocks, self._transform = base, blocks, transform
        self._experts = experts or {}
        self._calibration = calibration
        self._first = {} if calibration is None else _readers(calibration)
        self._latest: tuple[str, Tensor] | None = None
        self._layers: dict[str, dict[str, float]] = {}

    def source(self, layer: str) -> str:
        """Return the base's layer that ``layer`` of the altered model was made from."""
        mixture, _, rest = layer.partition(".experts.")
        if mixture in self._experts:
            index, _, projection = rest.partition(".")
            layer = f"{mixture}.experts.{self._experts[mixture][int(index)]}.{projection}"
        if self._blocks is None:
            return layer
        return re.sub(r"(?<=\.)(\d+)(?=\.)", lambda index: str(self._blocks[int(index[1])]), layer, count=1)  # type: ignore[index]

    def see(self, layer: str, after: Tensor, before: Tensor | None = None) -> None:
        """Compare a layer's dense weight [rows, columns].

        ``before``: the base's of the same name where it is loaded.
        """
        if self._transform == "rotated":
            return
        source = self.source(layer)
        if before is None or source != layer:
            if f"{source}.weight" not in self._base:
                return
            before = self._base.tensor(f"{source}.weight")
        if before.shape != after.shape:
            return
        if self._transform == "scaled":
            after = unscaled(before, after)
        signal, noise, largest = _sums(before, after)
        measures = {
            "weight_sqnr": decibels(signal, noise),
            "weight_outliers": largest * math.sqrt(before.numel() / signal) if signal else 1.0,
        }
        self._layers[layer] = {**measures, **self._of_inputs(source, before, after)}

    def go_through(self, model: PreTrainedModel) -> None:
        """See all linear layers of ``model``."""
        linears = {*linears_of(model, missing_ok=True), *formatted_layers(model)}
        for name, value in dense_weights(model):
            layer = name.removesuffix(".weight")
            if layer in linears and name.endswith(".weight"):
                self.see(layer, value)

    def _of_inputs(self, source: str, before: Tensor, after: Tensor) -> dict[str, float]:
        first = self._first.get(source)
        if self._calibration is None or first is None:
            return {}
        largest = self._calibration.max_abs(first)
        measures = {
            "input_outliers": (largest.max() / largest.median().clamp_min(1e-12)).item(),
            "tokens": self._calibration.tokens_seen(first),
        }
        H = self._second_moment(first)
        if H is not None:
            rows = torch.linspace(0, len(before) - 1, min(ROWS, len(before))).long()
            w, e = before[rows].float(), after[rows].float() - before[rows].float()
            signal, noise = (((x @ H) * x).double().sum().item() for x in (w, e))
            measures["output_sqnr"] = decibels(signal, noise)
        return measures

    def _second_moment(self, first: str) -> Tensor | None:
        if self._latest is None or self._latest[0] != first:
            assert self._calibration is not None
            if not self._calibration.second_moments_stored():
                return None
            self._latest = (first, self._calibration.second_moment(first))
        return self._latest[1]

    def write(self, folder: Path) -> None:
        """Write ``layers.json``."""
        text = json.dumps({name: _rounded(measures) for name, measures in self._layers.items()}, indent=1)
        (folder / LAYERS).write_text(text + "\n", encoding="utf-8")


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), at most LIMIT."""
    if noise <= 0:
        return LIMIT
    return min(LIMIT, 10 * math.log10(max(signal, 1e-300) / noise))


def unscaled(before: Tensor, after: Tensor) -> Tensor:
    """Return ``after`` [rows, columns] with the scales of its rows and columns against ``before`` taken out: float32.

    They are those of the least ‖after - diag(r) before diag(c)‖, fitted in turns.
    """
    w, v = before.float(), after.float()
    rows, columns = torch.ones(len(w), 1), torch.ones(1, w.shape[1])
    for _ in range(SWEEPS):
        scaled = w * rows
        columns = _ratio((v * scaled).sum(0, keepdim=True), scaled.square().sum(0, keepdim=True))
        scaled = w * columns
        rows = _ratio((v * scaled).sum(1, keepdim=True), scaled.square().sum(1, keepdim=True))
    return v / rows / columns


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    ratio = above / below
    return torch.where(ratio.isfinite() & (ratio.abs() > 1e-6), ratio, torch.ones_like(ratio))


def _sums(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """Return ‖before‖², ‖after - before‖², max|before|, piece by piece."""
    signal = noise = largest = 0.0
    step = rows_at_once(before.shape[1])
    for w, v in zip(before.split(step), after.split(step), strict=True):
        exact = w.float().flatten()
        error = v.float().flatten() - exact
        # A product with itself is one pass over memory; squares that are summed are three.
        signal += exact.dot(exact).item()
        noise += error.dot(error).item()
        low, high = exact.aminmax()
        largest = max(largest, -low.item(), high.item())
    return signal, noise, largest


def _readers(calibration: Statistics) -> dict[str, str]:
    """Return ``{linear: first linear that reads its input}``."""
    return {name: first for first, names in calibration.shared().items() for name in names}


def _rounded(measures: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.6g}") for key, value in measures.items()}
