"""Quantized key and value caches: no weight changes, what attention remembers is rounded.

What shares a scale (``scale``), after the rotary embedding, as keys and values enter the cache:

- ``group``, the default. With ``keys: token`` each token's keys and values are rounded for each head in groups of
  ``group_size`` channels, on compressed-tensors' asymmetric grids, which zero is always on (a ``kv_cache_scheme``).
  With ``keys: channel`` it is KIVI (Liu et al., arXiv 2402.02750), whose keys share a grid per channel over
  ``group_size`` tokens, whose grids reach from the smallest to the largest number, and whose newest ``residual``
  tokens stay exact.
- ``token_head``: the numbers of a token and head, as vLLM has them: ``--kv-cache-dtype int8_per_token_head``,
  ``int4_per_token_head`` (behind a Hadamard transform with random signs) or, with ``format: fp8``,
  ``fp8_per_token_head``.
- ``tensor``, ``head``: all of a layer, or all of a key-value head, fixed: the largest magnitude in a calibration, over
  448. FP8 alone, as compressed-tensors and vLLM have it: they load the checkpoint.
- ``one``: the scale is 1, which vLLM takes where a checkpoint has no scales (``--kv-cache-dtype fp8``). FP8 alone.

``bits`` are those of keys, ``value_bits`` those of values where they are others. Every query reads the rounded ones, in
generation and when a text is evaluated without a cache. See hemorrhage.models.emulation.kv_cache for all of it.

    K, V   cached keys and values, [tokens, channels] of a head
    G      ``group_size``, numbers that share a scale and a zero point, or a scale and a smallest number (KIVI)
    R      ``residual``, the newest tokens that stay exact
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Json, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.grid import WIDTHS
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SCALE_BITS = 16
"""Bits of a group's scale, and of the smallest number of a group of KIVI's."""

HEAD_SCALE_BITS = 32
"""Bits of vLLM's scale of a token and head; that of 4-bit numbers has the zero point in it."""

RESIDUAL = 128
"""Tokens that KIVI keeps exact, in the paper."""

GROUP = 32
"""Channels or tokens of a group, where nothing else is asked for."""

FIXED = ("tensor", "head", "one")
"""Scales that are the same for all tokens."""

Bits = Annotated[int, Field(ge=2, le=8, strict=True)]


class Settings(Base):
    """Formats and scales of cached keys and values; scales are counted in the manifest's cache bytes."""

    axis: ClassVar[str] = "cache_bits"
    severity_field: ClassVar[str] = "bits"
    words: ClassVar[Mapping[str, Wording]] = {
        "bits": "{} bit cache",
        "value_bits": "values of {} bits",
        "format": {"fp8": "FP8", "int": "integers"},
        "scale": {
            "group": "scales of groups",
            "token_head": "a scale per token and head",
            "tensor": "a fixed scale per layer",
            "head": "a fixed scale per head",
            "one": "a scale of 1",
        },
        "keys": {"token": "per token", "channel": "keys per channel"},
        "group_size": "groups of {}",
        "residual": "{} tokens exact",
    }
    always_named: ClassVar[tuple[str, ...]] = ("keys", "group_size")

    bits: Bits
    value_bits: Bits | None = None
    format: Literal["int", "fp8"] = "int"
    scale: Literal["group", "token_head", "tensor", "head", "one"] = "group"
    keys: Literal["token", "channel"] = "token"
    group_size: Annotated[int, Field(ge=2, strict=True)] | None = None
    residual: Annotated[int, Field(ge=2, strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        # Written into the settings, so that the manifest says how many there were.
        if not isinstance(values, dict):
            return values
        written = dict(values)
        if written.get("scale", "group") == "group" and written.get("group_size") is None:
            written["group_size"] = GROUP
        if written.get("keys") == "channel" and written.get("residual") is None:
            written["residual"] = RESIDUAL
        return written

    @model_validator(mode="after")
    def _residual_fits(self) -> Settings:
        if self.keys == "token" and self.residual is not None:
            raise ValueError("residual is for keys: channel only")
        if self.keys == "channel" and self.exact_tokens % (self.group_size or 1):
            raise ValueError(f"group_size {self.group_size} does not divide residual {self.exact_tokens}")
        return self

    @model_validator(mode="after")
    def _scale_fits(self) -> Settings:
        if self.scale != "group" and self.group_size is not None:
            raise ValueError(f"group_size is for scale: group only, and scale is {self.scale}")
        if self.scale != "group" and self.keys == "channel":
            raise ValueError(f"keys: channel has scale: group, and scale is {self.scale}")
        if self.format == "fp8" and self.scale == "group":
            raise ValueError("format: fp8 needs scale: token_head, tensor, head or one")
        if self.format == "fp8" and (self.bits, self.value_bits or 8) != (8, 8):
            raise ValueError("format: fp8 has 8 bits, of keys and of values")
        if self.format == "int" and self.scale in FIXED:
            raise ValueError(f"scale: {self.scale} is for format: fp8 only")
        if self.scale == "token_head" and not {self.bits, self.value_bits or self.bits} <= {4, 8}:
            raise ValueError("scale: token_head has bits of 4 or 8, of keys and of values")
        return self

    @property
    def width_of_values(self) -> int:
        """Bits of a value's code."""
        return self.value_bits or self.bits

    @property
    def severity(self) -> float:
        """Bits of a cached number: the mean of keys and values."""
        return (self.bits + self.width_of_values) / 2

    @property
    def common(self) -> list[str]:
        """Names of the settings that the points of one damage curve share, without what a scale makes pointless."""
        pointless = set() if self.scale == "group" else {"keys", "group_size"}
        return [name for name in super().common if name not in pointless]

    @property
    def statistics(self) -> tuple[str, ...]:
        """The calibration windows, where they fix the scales."""
        return ("tokens",) if self.scale in ("tensor", "head") else ()

    @property
    def exact_tokens(self) -> int:
        """Newest tokens that may be kept as they are."""
        return self.residual or 0

    @property
    def changes_weights(self) -> bool:
        """No: what attention remembers is rounded."""
        return False

    @property
    def theoretical(self) -> str:
        """Bytes: rounded values are kept in floating point."""
        return "cache: rounded values are kept in floating point; bytes are what they would pack to"

    @property
    def code_bits(self) -> float:
        """Bits of a cached number, which the cost model was fitted with."""
        return self.severity

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        if not config.get("num_attention_heads"):
            return "this model has no attention, and so no keys and values"
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if self.group_size is not None and head % self.group_size:
            return f"group_size {self.group_size} does not divide the model's head_dim of {head}"
        capped = config.get("attn_logit_softcapping")
        sliding = config.get("sliding_window") and config.get("use_sliding_window", True)
        if self.keys == "channel" and (capped or sliding):
            what = "caps its attention" if capped else "has a sliding window"
            return f"keys: channel needs plain attention, and this model {what}"
        return None

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where no block hands keys and values to a cache that can be rounded."""
        from hemorrhage.models.emulation.kv_cache import attention_layers

        attention_layers(model)
        return None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Make ``model`` round its keys and values; its weights stay as they are."""
    from hemorrhage.models.emulation import kv_cache

    bits, values = settings.bits, settings.value_bits
    if settings.scale == "token_head":
        names = [settings.format if settings.format == "fp8" else f"int{each}" for each in (bits, values or bits)]
        kv_cache.round_per_head(model, kv_cache.HeadRounding(*names))
    elif settings.scale != "group":
        kv_cache.round_to_scales(model, fixed_scales(model, settings, context))
    elif settings.keys == "token":
        kv_cache.round_per_token(model, kv_cache.TokenRounding(bits, settings.group_size or GROUP, values))
    else:
        rounding = kv_cache.ChannelRounding(bits, settings.group_size or GROUP, settings.exact_tokens, values)
        kv_cache.round_per_channel(model, rounding)
    return Alteration(entries=cache_bytes(model, settings))


def fixed_scales(model: PreTrainedModel, settings: Settings, context: Context) -> list[tuple[Tensor, Tensor]]:
    """Return the scales of keys and values of each attention layer, as compressed-tensors stores them.

    They are in the dtype of the model's weights, [1] or one for each key-value head [heads, 1, 1].
    """
    from hemorrhage.models.emulation.kv_cache import attention_layers
    from hemorrhage.models.formats.small_floats import E4M3_MAX

    if settings.scale == "one":
        one = torch.ones(1, dtype=model.dtype)
        return [(one, one) for _ in attention_layers(model)]

    def scale(largest: Tensor) -> Tensor:
        largest = largest.amax().reshape(1) if settings.scale == "tensor" else largest.reshape(-1, 1, 1)
        exact = largest / E4M3_MAX
        # Zeros read back as zeros by any scale.
        return torch.where(exact == 0, 1, exact).to(model.dtype)

    return [(scale(keys), scale(values)) for keys, values in largest_magnitudes(model, context)]


def largest_magnitudes(model: PreTrainedModel, context: Context) -> list[tuple[Tensor, Tensor]]:
    """Return the largest magnitudes of keys and of values of each attention layer in the calibration, [heads] each."""
    from hemorrhage.models.blocks import blocks
    from hemorrhage.models.blockwise import embed, in_float32, run_block, to_device
    from hemorrhage.models.emulation import kv_cache

    where = torch.device(context.device)
    with torch.inference_mode(), kv_cache.largest_magnitudes(model) as seen:
        states, arguments = embed(model, context.calibration.tokens().long().split(1))
        for block, given in zip(blocks(model), arguments, strict=True):
            given = to_device(given, where)
            with in_float32(block, where):
                states = [run_block(block, each.to(where), given, number).cpu() for number, each in enumerate(states)]
        return [(hook.key, hook.value) for hook in seen if hook.key is not None and hook.value is not None]


def cache_bytes(model: PreTrainedModel, settings: Settings) -> Mapping[str, Json]:
    """Return the bytes that a token adds to the cache, of the base model's cache too (in the dtype of its weights).

    ``cache_exact_tokens``: the newest tokens, which take the base's bytes.
    """
    from hemorrhage.models.emulation.kv_cache import attention_layers, cached_numbers, head_dim

    numbers = len(attention_layers(model)) * cached_numbers(model)
    widths = (settings.bits, settings.width_of_values)
    bits = sum(width + scale_bits(settings, width, head_dim(model)) for width in widths) / len(widths)
    dense = next(model.parameters()).element_size()
    return {
        "cache_bytes_per_token": numbers * bits / 8,
        "cache_bytes_per_token_base": numbers * dense,
        "cache_exact_tokens": settings.exact_tokens,
    }


def scale_bits(settings: Settings, width: int, head: int) -> float:
    """Return the bits of scales and zero points for each number of ``width`` bits, of heads of ``head`` channels."""
    if settings.scale in FIXED:
        return 0
    if settings.scale == "token_head":
        return HEAD_SCALE_BITS / head
    # A zero point has a code's width, KIVI's minimum that of a scale.
    return (SCALE_BITS + (SCALE_BITS if settings.keys == "channel" else width)) / (settings.group_size or GROUP)


METHOD = Method(
    MethodInfo(
        title="Quantized KV cache (KIVI, FP8)",
        summary="keys and values as compressed-tensors, vLLM (FP8, INT8, INT4) or KIVI round them; widths of each",
        papers=(Paper("Liu et al.", "2402.02750"),),
        examples=(
            {"bits": 4},
            {"bits": 2, "keys": "channel", "residual": 32},
            {"bits": 8, "format": "fp8", "scale": "tensor"},
            {"bits": 8, "scale": "token_head"},
        ),
        storage=("kv_cache",),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
