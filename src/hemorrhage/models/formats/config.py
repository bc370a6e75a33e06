"""Types of the entries of config.json that say how weights are stored and what is rounded at run time.

``quantization_config`` is in the words of compressed-tensors. ``hemorrhage`` has what no quantization_config and no
family's configuration can say; its keys on disk (``form``, ``forms``, ``narrow``, ``layout``, ``kv_cache``) stay as the
first checkpoints had them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

KEY = "hemorrhage"
"""The bench's entry of config.json."""

LAYOUT = "layout"
"""Its key that a checkpoint with the bench's names of tensors has."""


CACHE_SCALES = ("k_scale", "v_scale")
"""Tensors of an attention layer: fixed scales of its keys and values, by compressed-tensors' names."""


class QuantizationArgs(TypedDict, total=False):
    """How numbers are rounded: compressed-tensors' class of this name."""

    num_bits: int
    type: str
    symmetric: bool
    strategy: str
    group_size: int | None
    block_structure: list[int] | None
    dynamic: bool | str
    actorder: str | bool | None
    scale_dtype: str | None
    zp_dtype: str | None


class QuantizationScheme(TypedDict, total=False):
    """A group of layers whose weights, and maybe inputs, are rounded alike."""

    weights: QuantizationArgs
    input_activations: QuantizationArgs | None
    format: str
    targets: list[str]


class QuantizationConfig(TypedDict, total=False):
    """config.json's ``quantization_config``."""

    quant_method: str
    version: str
    format: str
    quantization_status: str
    config_groups: dict[str, QuantizationScheme]
    ignore: list[str]
    kv_cache_scheme: QuantizationArgs | None


@dataclass(frozen=True)
class BenchStorage:
    """What config.json says of a checkpoint under ``hemorrhage``.

    ``model_format``: the storage format of a whole model (key ``form``); ``layer_formats``: formats of layers that no
    quantization_config names (``forms``); ``pruned_width``: weights that are smaller than the family's configuration
    says, and biases that it has none of (``narrow``); ``kv_cache``: how keys and values are rounded or evicted;
    ``is_by_layer``: tensors have the bench's names (``layout``).
    """

    model_format: str | None = None
    layer_formats: tuple[str, ...] = ()
    pruned_width: tuple[str, ...] = ()
    kv_cache: Mapping[str, Any] | None = None
    is_by_layer: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> BenchStorage:
        """Read the entry of a config.json; one without it says nothing."""
        entry = config.get(KEY) or {}
        return cls(
            entry.get("form"),
            tuple(entry.get("forms") or ()),
            tuple(entry.get("narrow") or ()),
            entry.get("kv_cache"),
            LAYOUT in entry,
        )

    @classmethod
    def of_model(cls, config: PreTrainedConfig) -> BenchStorage:
        """Read the entry of a configuration that transformers has loaded."""
        return cls.of({KEY: getattr(config, KEY, None)})
