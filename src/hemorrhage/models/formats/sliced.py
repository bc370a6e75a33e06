"""A model whose residual stream was cut to fewer columns, in a basis of its own at every norm (SliceGPT).

The stream is ``kept`` columns wide instead of ``config.hidden_size``. Between two bases the residual connection goes
through a matrix [kept, kept], applied as ``x @ shortcut``. Norms have no weights, which are part of the linear layers
behind them, and divide by the root of the sum of squares over the *original* width, as before; means are subtracted by
what writes. All other tensors have the names that they have in memory; embedding and head are two matrices. config.json
is the family's, of the original width, with ``hemorrhage: {"form": "sliced", "kept": columns}``.

A block like Llama's has ``<block>.attention_shortcut`` and ``<block>.mlp_shortcut``. Of others config.json says which
modules are norms of the stream and which add to it: ``stages``, for each block the stages of ``Stage``, and ``last``,
the norm before the head. The shortcut of stage i is ``<block>.shortcut_<i>``.

No engine reads this format, which is the bench's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from hemorrhage.models.blocks import blocks
from hemorrhage.models.experts import unfuse
from hemorrhage.models.weights import Weights


class Stage(TypedDict):
    """A state of the stream inside a block, as config.json has it.

    ``norms``: names in the block of the norms that read it, and the number that each adds under its root; ``adds``: the
    module whose output is added to it; ``factor``: that of the output.
    """

    norms: dict[str, float]
    adds: str
    factor: float


class SlicedNorm(nn.Module):
    """Root mean square norm without weights, whose mean is over ``width`` columns whatever its input has."""

    def __init__(self, width: int, eps: float) -> None:
        """``width``: columns before any were cut; ``eps`` is added to the mean square."""
        super().__init__()
        self.width = width
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., kept] over the root of its squares' sum / ``width``, computed in float32."""
        wide = x.float()
        mean = wide.square().sum(-1, keepdim=True) / self.width
        return (wide * torch.rsqrt(mean + self.eps)).to(x.dtype)


class StageNorm(SlicedNorm):
    """The norm of a stage, which holds what entered it until the stage is over."""

    entered: Tensor | None = None

    def __init__(self, width: int, eps: float, block: nn.Module) -> None:
        """``block``: the one whose norm it is."""
        super().__init__(width, eps)
        # No child of the norm.
        vars(self)["block"] = block

    @property
    def weight(self) -> Tensor:
        """Some blocks ask their norm's weight for the dtype that they compute in."""
        parameter: Tensor = next(iter(vars(self)["block"].parameters()))
        return parameter

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., kept], normalised."""
        self.entered = x
        return super().forward(x)


class Shortcut:
    """Takes the residual connection of a stage through a matrix, as a hook of the module that adds to the stream.

    ``x + factor · y`` is what a family computes: with ``y + (x @ shortcut - x) / factor`` it is the sum wanted.
    """

    def __init__(self, block: nn.Module, norm: StageNorm, name: str, factor: float) -> None:
        """``name``: of the matrix, a parameter of ``block``."""
        self.block, self.norm, self.name, self.factor = block, norm, name, factor

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Return the output [..., kept] of the module, or the first of several."""
        x, first = self.norm.entered, output[0] if isinstance(output, tuple) else output
        assert x is not None
        self.norm.entered = None
        added = first + ((x @ self.block.get_parameter(self.name) - x) / self.factor).view_as(first)
        return (added, *output[1:]) if isinstance(output, tuple) else added


def install(block: nn.Module, stages: Sequence[Stage], width: int, kept: int) -> None:
    """Put norms without weights and shortcuts, which have no values yet, into a block of ``width`` columns."""
    for index, stage in enumerate(stages):
        name = f"shortcut_{index}"
        block.register_parameter(name, nn.Parameter(torch.empty(kept, kept, device="meta")))
        norms = [StageNorm(width, eps, block) for eps in stage["norms"].values()]
        for place, norm in zip(stage["norms"], norms, strict=True):
            block.set_submodule(place, norm)
        block.get_submodule(stage["adds"]).register_forward_hook(Shortcut(block, norms[0], name, stage["factor"]))
    narrow_routing(block, width, kept)


def narrow_routing(block: nn.Module, width: int, kept: int) -> None:
    """Make mixtures and routers of a block, which reshape what they read, know that the stream is narrower."""
    for module in block.modules():
        weight = getattr(module, "weight", None)
        is_router = not isinstance(module, nn.Linear) and isinstance(weight, nn.Parameter) and weight.dim() == 2
        if is_router or isinstance(getattr(module, "experts", None), nn.ModuleList):
            for key in ("hidden_dim", "hidden_size", "input_size"):
                if getattr(module, key, None) == width:
                    setattr(module, key, kept)


class SlicedBlock(nn.Module):
    """A decoder block between three bases: of its input, of the MLP's input and of its output."""

    def __init__(self, block: Any, config: Any) -> None:
        """Take over attention and MLP of ``block``; the shortcuts [kept, kept] have no values yet."""
        super().__init__()
        kept = config.hemorrhage["kept"]
        self.self_attn = block.self_attn
        self.mlp = block.mlp
        self.norm = SlicedNorm(config.hidden_size, config.rms_norm_eps)
        self.attention_shortcut = nn.Parameter(torch.empty(kept, kept, device="meta"))
        self.mlp_shortcut = nn.Parameter(torch.empty(kept, kept, device="meta"))

    def attend(self, x: Tensor, **arguments: Any) -> Tensor:
        """Return what attention adds to ``x`` [n, length, kept]; ``arguments`` are those of the block."""
        output: Tensor = self.self_attn(hidden_states=self.norm(x), **arguments)[0]
        return output

    def feed(self, x: Tensor) -> Tensor:
        """Return what the MLP adds to ``x`` [n, length, kept]."""
        output: Tensor = self.mlp(self.norm(x))
        return output

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """[n, length, kept] -> [n, length, kept]."""
        x = hidden_states @ self.attention_shortcut + self.attend(hidden_states, **arguments)
        return x @ self.mlp_shortcut + self.feed(x)


def set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Make ``value`` the parameter ``name`` of ``module``, whose shape need not be the one before."""
    setattr(module, name, nn.Parameter(value))
    if name == "weight" and isinstance(module, nn.Linear):
        module.out_features, module.in_features = value.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = value.shape[1]


def build(folder: Path, config: Any, dtype: str, _as_stored: bool = False, base: Path | None = None) -> PreTrainedModel:
    """Return the model of a checkpoint ``folder`` in the torch type ``dtype`` (``stored``: each tensor in its own).

    Raises OSError where a tensor is missing.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        model: PreTrainedModel = model_class(config)
    if "stages" in config.hemorrhage:
        unfuse(model)
        _install_all(model, config.hidden_size, config.hemorrhage)
    else:
        decoder: Any = model.get_decoder()
        decoder.layers = nn.ModuleList(SlicedBlock(block, config) for block in decoder.layers)
        decoder.norm = SlicedNorm(config.hidden_size, config.rms_norm_eps)
        # Its frequencies are computed, not stored.
        decoder.rotary_emb = type(decoder.rotary_emb)(config=config)
    for name, value in Weights(folder, base).items():
        layer, _, parameter = name.rpartition(".")
        set_parameter(
            model.get_submodule(layer), parameter, value if dtype == "stored" else value.to(getattr(torch, dtype))
        )
    missing = [name for name, value in model.state_dict().items() if value.is_meta]
    if missing:
        raise OSError(f"{folder}: {min(missing)} is not in its safetensors")
    return model


def _install_all(model: PreTrainedModel, width: int, entry: Mapping[str, Any]) -> None:
    for block, stages in zip(blocks(model), entry["stages"], strict=True):
        install(block, stages, width, entry["kept"])
    for name, eps in entry["last"].items():
        model.set_submodule(name, SlicedNorm(width, eps))


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of ``model``. Raises ValueError where a layer is not a plain linear layer."""
    from hemorrhage.models.formats.storage import formatted_layers

    formatted = formatted_layers(model)
    if formatted:
        raise ValueError(f"{min(formatted)}: layers of a sliced model can't be packed or factored")
    return {name: value.detach() for name, value in model.state_dict().items()}
