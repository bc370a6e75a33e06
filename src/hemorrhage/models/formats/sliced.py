"""A Llama-like model whose residual stream was cut to fewer columns, in a basis of its own at every norm (SliceGPT).

The stream is ``kept`` columns wide instead of ``config.hidden_size``. Between two bases the residual connection goes
through a matrix: ``<block>.attention_shortcut`` and ``<block>.mlp_shortcut``, [kept, kept], applied as ``x @
shortcut``. Norms have no weights, which are part of the linear layers behind them, and divide by the root of the sum
of squares over the *original* width, as before. All other tensors have their family's names; embedding and head are two
matrices. config.json is the family's, of the original width, with ``hemorrhage: {"form": "sliced", "kept": columns}``.

No engine reads this format, which is the bench's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from hemorrhage.models.weights import Weights


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


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of ``model``. Raises ValueError where a layer is not a plain linear layer."""
    from hemorrhage.models.formats.storage import formatted_layers

    formatted = formatted_layers(model)
    if formatted:
        raise ValueError(f"{min(formatted)}: layers of a sliced model can't be packed or factored")
    return {name: value.detach() for name, value in model.state_dict().items()}
