"""SmoothQuant's smoothing (Xiao et al., arXiv 2211.10438): outliers of activations move into the weights.

``s_j = max|X_j|^a / max|W_j|^(1-a)`` for each input feature j of the linear layers that read one norm's
output, the maximum over all of them. The norm's weight is divided by s, the layers' columns are multiplied by
it: the model computes what it did, with inputs that are easier to round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.method import ConfigJson
from hemorrhage.compress.solvers import folding
from hemorrhage.models.blocks import blocks
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Keys of config.json that a mixture of experts has."""


def check(config: ConfigJson) -> str | None:
    """Return the reason why a model with this config.json can't be smoothed, or None."""
    key = next((key for key in EXPERTS if config.get(key)), None)
    return key and f"smoothing is for dense blocks, and this model has {key} {config[key]}"


def norms_before(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return ``{linear layer: norm whose output it reads}`` for those of the decoder blocks that read one.

    Observed while the model runs over one token, and so independent of what an architecture calls its layers.
    """
    from hemorrhage.models.blockwise import forward_blockwise

    inside = [module for block in blocks(model) for module in block.modules()]
    names = {module: name for name, module in model.named_modules()}
    # The outputs are kept until the end, or else a later tensor could have an earlier one's identity.
    outputs: list[tuple[Tensor, nn.Module]] = []
    norms: dict[str, nn.Module] = {}

    def note_output(module: nn.Module, _: Any, output: Tensor) -> None:
        outputs.append((output, module))

    def note_input(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        norm = next((norm for output, norm in outputs if output is arguments[0]), None)
        if norm is not None:
            norms[names[module]] = norm

    hooks = []
    for module in inside:
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Linear):
            hooks.append(module.register_forward_pre_hook(note_input))
        elif isinstance(weight, torch.nn.Parameter) and weight.dim() == 1:
            hooks.append(module.register_forward_hook(note_output))
    try:
        forward_blockwise(model, torch.zeros((1, 1), dtype=torch.long, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return norms


def foldable_norms(model: PreTrainedModel, inputs: Mapping[str, Sequence[str]]) -> dict[str, nn.Module]:
    """Return ``norms_before`` of the ``inputs`` {first linear: [linears]} whose norm takes their factors.

    Raises RefusedError where one does not, or none is there: smoothing would alter what the model computes, or nothing.
    """
    norms = norms_before(model)
    groups = {first: names for first, names in inputs.items() if first in norms}
    name = type(model).__name__
    if not groups:
        raise RefusedError(f"no linear layer of {name} reads what a norm makes, so there is nothing to smooth")
    makers = folding.find_makers(model, groups)
    for first in groups:
        if first not in makers or model.get_submodule(makers[first]) is not norms[first]:
            raise RefusedError(
                f"the norm before {first} of {name} takes no factors: it is none that only scales, or others read it"
            )
    return norms


def scales(largest: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """Return s [n] of the layers ``weights`` [rows_i, n] that read inputs of magnitude up to ``largest`` [n].

    Features that are always zero, in the inputs or in the weights, keep a scale of 1.
    """
    heaviest = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
    scale = largest.pow(alpha) / heaviest.pow(1 - alpha)
    return torch.where((largest > 0) & (heaviest > 0), scale, 1.0)


def fold(norm: Any, scale: Tensor) -> Tensor:
    """Divide the weight and bias of ``norm`` by ``scale`` [n]; return the factors of the readers' columns.

    They are ``scale``, but for the rounding of the norm's weight to its own dtype. Raises ValueError for a
    norm that is not proportional to its weight (Gemma's are 1 + weight).
    """
    weight = norm.weight.data
    affine = [value.data for value in (norm.weight, getattr(norm, "bias", None)) if value is not None]
    probe = torch.linspace(-1, 1, len(weight), dtype=weight.dtype, device=weight.device)
    before = norm(probe)
    # Powers of two are exact, so that only a norm of another kind can differ.
    for value in affine:
        value.mul_(2)
    doubled = norm(probe)
    for value in affine:
        value.div_(2)
    if not torch.equal(doubled, 2 * before):
        raise ValueError(f"the output of {type(norm).__name__} is not proportional to its weight")
    old = weight.float().clone()
    for value in affine:
        value.copy_(value.float() / scale)
    new = weight.float()
    return torch.where(new == 0, 1.0, old / new)
