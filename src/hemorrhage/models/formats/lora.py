"""A linear layer with a low-rank adapter on it (LoRA, arXiv 2106.09685): ``W + s B A``.

``lora_base`` [rows, columns] is W, which a checkpoint shares with its base; ``lora_A`` [rank, columns] and ``lora_B``
[rows, rank]; ``lora_scale`` float64 [1] is s. With ``lora_magnitude`` [rows] (DoRA, arXiv 2402.09353) rows have that
norm: ``m (W + s B A) / |W + s B A|``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.pieces import FLOATS, Pieces, fit, whole

PIECES = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_A.default.weight": "lora_A",
    "lora_B.default.weight": "lora_B",
    "lora_magnitude_vector": "lora_magnitude",
    "lora_magnitude_vector.weight": "lora_magnitude",
}
"""Suffix in a file of peft -> ours."""

PREFIX = "base_model.model."

REFUSED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
"""Settings of peft with which the weight is not ``W + s B A``, or other tensors are altered."""

INITIALIZATIONS = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Beginnings of ``init_lora_weights`` that alter the base's weights, too; eva and others alter the adapter alone."""


class LoraLinear(DequantizedLinear):
    """A linear layer with an adapter, which are added whenever it computes."""

    storage_format = "lora"

    def __init__(self, stored: dict[str, Tensor], bias: nn.Parameter | None) -> None:
        """Take ``stored`` as in the module's docstring."""
        rows, columns = stored["lora_base"].shape
        super().__init__((rows, columns), stored, bias)

    def dense(self) -> Tensor:
        """Return the weight float32 [rows, columns], which peft merges into a base in float32."""
        stored = self.stored()
        A, B, s = stored["lora_A"].float(), stored["lora_B"].float(), float(stored["lora_scale"])
        W = stored["lora_base"].float() + B @ A * s
        if "lora_magnitude" in stored:
            W = (stored["lora_magnitude"].float() / W.norm(dim=1)).view(-1, 1) * W
        return W


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> LoraLinear:
    """Return the layer that our checkpoint's tensors ``stored`` describe."""
    return LoraLinear(stored, None)


@dataclass(frozen=True)
class Adapter:
    """The names in an adapter's file.

    ``layers``: layer -> our suffix -> name; ``replaced``: name of a base's tensor -> that of the one in its place.
    """

    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)


def group(names: Iterable[str]) -> Adapter:
    """Group an adapter's tensors by layer. Raises ValueError for one that is not read."""
    adapter = Adapter()
    for name in names:
        own = name.removeprefix(PREFIX)
        suffix = next((each for each in PIECES if own.endswith(f".{each}")), None)
        if suffix is not None:
            pieces = adapter.layers.setdefault(own.removesuffix(f".{suffix}"), {})
            _add(pieces, PIECES[suffix], name)
        elif "lora_" in own:
            raise ValueError(f"{name} is not read; {', '.join(('lora_A', 'lora_B', 'lora_magnitude_vector'))} are")
        else:
            _add(adapter.replaced, re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)", "", own), name)
    return adapter


def _add(names: dict[str, str], key: str, name: str) -> None:
    if key in names:
        raise ValueError(f"{names[key]} and {name} are one tensor twice")
    names[key] = name


def layer_of(linear: nn.Linear, stored: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> LoraLinear:
    """Return the layer of the base's ``linear`` and an adapter's tensors, by our suffixes.

    Raises ValueError, one line, where they don't fit.
    """
    pieces = Pieces(stored, PIECES.values())
    A, B = pieces.scales("lora_A"), pieces.scales("lora_B")
    rank = len(A)
    fit("lora_A", A, rank, linear.in_features)
    fit("lora_B", B, linear.out_features, rank)
    W = linear.weight.detach()
    if W.dtype not in FLOATS:
        raise ValueError("its base is not of floating-point weights")
    tensors = {"lora_base": W, "lora_A": A, "lora_B": B}
    tensors["lora_scale"] = torch.tensor([scale_of(config, name, rank)], dtype=torch.float64)
    has_magnitude = "lora_magnitude" in pieces
    if has_magnitude is not bool(config.get("use_dora")):
        raise ValueError("use_dora of adapter_config.json and lora_magnitude_vector do not go together")
    if has_magnitude:
        dimensions = stored["lora_magnitude"].ndim
        magnitude = pieces.scales("lora_magnitude", dimensions).flatten()
        fit("lora_magnitude_vector", magnitude, linear.out_features)
        tensors["lora_magnitude"] = magnitude
    return LoraLinear(tensors, linear.bias)


def check(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an adapter that is not read, by the setting that says so."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"peft_type {kind!r} is not read; LORA is")
    for key in REFUSED:
        if config.get(key):
            raise ValueError(f"{key} is not read")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(INITIALIZATIONS):
        raise ValueError(f"init_lora_weights {start!r} alters the base's weights as well, which is not read")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, Mapping) or not all(re.fullmatch(r"\^?[\w.]+", str(each)) for each in patterns):
            raise ValueError(f"{key} is read where its keys are names, not regular expressions")


def scale_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    """Return what ``B A`` of a layer is multiplied by. Raises ValueError where the rank is not the one announced."""
    announced, alpha = (_of_layer(config, pattern, key, name) for pattern, key in _SETTINGS)
    if announced != rank:
        raise ValueError(f"lora_A has rank {rank}, and adapter_config.json says {announced}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"lora_alpha is {alpha!r}, not a number")
    return float(alpha / math.sqrt(rank)) if config.get("use_rslora") else alpha / rank


_SETTINGS = (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))


def _of_layer(config: Mapping[str, Any], pattern: str, key: str, name: str) -> object:
    """Return a setting of the layer ``name``: that of the first name in ``pattern`` that is its end."""
    for end, value in (config.get(pattern) or {}).items():
        if name == end.removeprefix("^") or (not end.startswith("^") and name.endswith(f".{end}")):
            own: object = value
            return own
    return config.get(key, 8)


def describe(config: Mapping[str, Any], layers: int) -> str:
    """Return the adapter in words."""
    kind = "DoRA" if config.get("use_dora") else "rsLoRA" if config.get("use_rslora") else "LoRA"
    rank = whole(config, "r")
    ranks = "several ranks" if config.get("rank_pattern") else f"rank {8 if rank is None else rank}"
    return f"{kind} adapter, {ranks}, {layers} layers"
