"""Refusing alterations that failed silently."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hemorrhage.models.folder import dense_weights, stored_tensors
from hemorrhage.models.formats.config import CACHE_SCALES
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import is_real
from hemorrhage.models.weights import Weights, digest
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.compress.checks.fidelity import Fidelity


@dataclass(frozen=True)
class Survey:
    """What one pass over an altered model's weights finds.

    ``changed``: share of weights that differ from those of the same name in the model before; weights that only one of
    both has count as different; a rounded cache's scales are none. ``parameters``: weights of the model; of a packed
    layer as many as it has dense, of factors their own. ``layer_weights``: those of the linear layers. ``zeros``: among
    each linear layer's dense weights, by the layer's name; ``sparsity``: their share.
    """

    changed: float
    parameters: int
    layer_weights: int
    zeros: dict[str, int]
    sparsity: float


def survey(
    model: PreTrainedModel,
    of_base: Weights,
    layers: Collection[str],
    silent: int = 0,
    fidelity: Fidelity | None = None,
) -> Survey:
    """Compare the weights of ``model`` with those before, ``of_base``; ``fidelity`` sees the linear ones.

    Raises ValueError where a weight is NaN or infinite, or where more than ``silent`` of ``layers``, as many as there
    were before, have only one value left.
    """
    from hemorrhage.models.formats.storage import formatted_layers

    forms = formatted_layers(model)
    linears = {*linears_of(model, missing_ok=True), *forms}
    before = {name: of_base.shape(name) for name in of_base.names()}
    different = total = parameters = layer_weights = dense = 0
    zeros: dict[str, int] = {}
    for name, value in dense_weights(model):
        layer, count = name.removesuffix(".weight"), value.numel()
        if not is_finite(value):
            raise ValueError(f"{name} holds NaN or infinite weights after the alteration")
        if name.rpartition(".")[2] in CACHE_SCALES:
            before.pop(name, None)
            continue
        if layer in layers and constant(value):
            silent -= 1
            if silent < 0:
                raise ValueError(f"{name} holds only the value {value.flatten()[0].item():g} after the alteration")
        kept = forms[layer].parameters_count if layer in forms and name.endswith(".weight") else count
        parameters += kept
        if layer in linears and name.endswith(".weight"):
            zeros[layer] = _count(value == 0)
            layer_weights, dense = layer_weights + kept, dense + count
        theirs, old = before.pop(name, None), None
        if theirs == value.shape:
            old = of_base.tensor(name)
            different += _different(value, old)
            total += count
        else:
            # Another shape replaces the weights of that name; a new name adds to them.
            extent = count if theirs is None else theirs.numel()
            different, total = different + extent, total + extent
        if fidelity is not None and layer in linears and name.endswith(".weight"):
            fidelity.see(layer, value, old)
    lost = sum(shape.numel() for name, shape in before.items() if name not in model.all_tied_weights_keys)
    changed = (different + lost) / (total + lost)
    return Survey(changed, parameters, layer_weights, zeros, sum(zeros.values()) / max(dense, 1))


def constant(value: Tensor) -> bool:
    """Return whether all numbers of a tensor are the same."""
    first = value.flatten()[:1]
    # A few numbers tell most tensors apart.
    return value.numel() > 1 and bool((value.flatten()[:64] == first).all()) and bool((value == first).all())


def _different(new: Tensor, old: Tensor) -> int:
    # In the same dtype as they are: float32 copies of a large layer cost more than the layer.
    if new.dtype != old.dtype:
        new, old = new.float(), old.float()
    return _count(new != old)


def is_finite(value: Tensor) -> bool:
    """Return whether no number of a tensor is NaN or infinite."""
    if not is_real(value.dtype) or not value.numel():
        return bool(value.isfinite().all())
    # One pass that writes nothing: a sixteenth of the time. A NaN is both ends.
    return all(math.isfinite(end.item()) for end in value.aminmax())


def _count(chosen: Tensor) -> int:
    """Return how many of a tensor of booleans are true; torch's sum would make integers of them first."""
    import numpy as np

    return int(np.count_nonzero(chosen.cpu().numpy()))


def check_disk(model: PreTrainedModel, on_disk: Weights, dtype: torch.dtype, base: Weights) -> None:
    """Raise ValueError where a tensor on disk is not, bit for bit, what the model in memory stores."""
    expected = dict(stored_tensors(model, dtype, base))
    for name, tensor in on_disk.items():
        value, stored_dtype = expected.pop(name)
        if digest(tensor) != digest(value.to(stored_dtype)):
            raise ValueError(f"{name} reads back differently from disk")
    if expected:
        raise ValueError(f"{min(expected)} is not on disk")


def zero_share(linears: dict[str, nn.Linear]) -> float:
    """Return the share of zeros among the weights of ``linears``."""
    values = [linear.weight for linear in linears.values()]
    return sum(_count(w == 0) for w in values) / sum(w.numel() for w in values)
