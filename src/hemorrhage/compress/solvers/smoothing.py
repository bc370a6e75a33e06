"""SmoothQuant's smoothing (Xiao et al., arXiv 2211.10438): outliers of activations move into the weights.

``s_j = max|X_j|^a / max|W_j|^(1-a)`` for each input feature j of the linear layers that read one norm's
output, the maximum over all of them: over the experts, too, where a mixture reads the norm. The norm's weight is
divided by s, the columns of everything that reads it are multiplied by it, the router's among them: the model computes
what it did, with inputs that are easier to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.solvers.shuffle import shuffle
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.compress.solvers.readers import NormReaders


def scales(largest: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """Return s [n] of the layers ``weights`` [rows_i, n] that read inputs of magnitude up to ``largest`` [n].

    Features that are always zero, in the inputs or in the weights, keep a scale of 1.
    """
    heaviest = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
    scale = largest.pow(alpha) / heaviest.pow(1 - alpha)
    return torch.where((largest > 0) & (heaviest > 0), scale, 1.0)


def smooth(
    model: PreTrainedModel,
    readers: NormReaders,
    ranges: Sequence[Tensor],
    alpha: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Smooth what a norm gives; return the factors of its linear layers' columns, which are left to the caller.

    ``ranges``: the largest magnitudes [n] of each input. A ``generator`` shuffles the scales among the features.
    """
    weights: list[Tensor] = [model.get_parameter(f"{name}.weight") for name in readers.linears]
    largest = torch.stack([each.to(model.device) for each in ranges]).amax(0)
    return move(model, readers, shuffle(scales(largest, weights, alpha), generator), weights[0].dtype)


def move(model: PreTrainedModel, readers: NormReaders, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Divide what a norm gives by ``scale`` [n], and multiply the columns of its readers that are not linear layers.

    ``dtype``: that of the checkpoint; some families hold norms and routers in a wider one. Returns the factors of the
    linear layers' columns, which are left to the caller: they are rounded once after it.
    """
    factor = fold(model.get_submodule(readers.norm), scale, dtype)
    for name in readers.others:
        layer: Any = model.get_submodule(name)
        layer.weight.data.copy_((layer.weight.data.float() * factor).to(dtype))
    return factor


def fold(norm: Any, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Divide the weight and bias of ``norm`` by ``scale`` [n]; return the factors of the readers' columns.

    They are ``scale``, but for the rounding of the norm's weight to ``dtype``, in which it is stored.
    """
    old = norm.weight.data.float().clone()
    for value in (norm.weight, getattr(norm, "bias", None)):
        if value is not None:
            value.data.copy_((value.data.float() / scale).to(dtype))
    new = norm.weight.data.float()
    return torch.where(new == 0, 1.0, old / new)
