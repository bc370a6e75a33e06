"""Quantized key and value caches: no weight changes, what attention remembers is rounded.

``keys: token``: each token's keys and values, after the rotary embedding, are rounded for each head in groups
of ``group_size`` channels as they enter the cache, on compressed-tensors' asymmetric grids, which zero is always on
(a ``kv_cache_scheme``). ``keys: channel``: KIVI (Liu et al., arXiv 2402.02750), whose keys share a grid per channel
over ``group_size`` tokens, whose grids reach from the smallest to the largest number, and whose newest ``residual``
tokens stay exact. Every query reads the rounded ones, in generation and when a text is evaluated without a cache. See
hemorrhage.models.emulation.kv_cache for both in full.

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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALE_BITS = 16
"""Bits of a group's scale, and of the smallest number of a group of KIVI's."""

RESIDUAL = 128
"""Tokens that KIVI keeps exact, in the paper."""


class Settings(Base):
    """Bits and groups of cached keys and values; what a group stores is counted in the manifest's cache bytes."""

    axis: ClassVar[str] = "cache_bits"
    severity_field: ClassVar[str] = "bits"
    words: ClassVar[Mapping[str, Wording]] = {
        "bits": "{} bit cache",
        "keys": {"token": "per token", "channel": "keys per channel"},
        "group_size": "groups of {}",
        "residual": "{} tokens exact",
    }
    always_named: ClassVar[tuple[str, ...]] = ("keys", "group_size")

    bits: Annotated[int, Field(ge=2, le=8, strict=True)]
    keys: Literal["token", "channel"] = "token"
    group_size: Annotated[int, Field(ge=2, strict=True)] = 32
    residual: Annotated[int, Field(ge=2, strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _paper(cls, values: Any) -> Any:
        # Written into the settings, so that the manifest says how many there were.
        if isinstance(values, dict) and values.get("keys") == "channel" and values.get("residual") is None:
            return {**values, "residual": RESIDUAL}
        return values

    @model_validator(mode="after")
    def _residual_fits(self) -> Settings:
        if self.keys == "token" and self.residual is not None:
            raise ValueError("residual is for keys: channel only")
        if self.keys == "channel" and self.exact_tokens % self.group_size:
            raise ValueError(f"group_size {self.group_size} does not divide residual {self.exact_tokens}")
        return self

    @property
    def exact_tokens(self) -> int:
        """Newest tokens that may be kept as they are."""
        return self.residual or 0

    @property
    def group_bits(self) -> int:
        """Bits that a group stores besides its codes: a scale and a zero point of a code's width, or KIVI's minimum."""
        return SCALE_BITS + (SCALE_BITS if self.keys == "channel" else self.bits)

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
        return float(self.bits)

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        if not config.get("num_attention_heads"):
            return "this model has no attention, and so no keys and values"
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if head % self.group_size:
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


def alter(model: PreTrainedModel, settings: Settings, _context: Context) -> Alteration:
    """Make ``model`` round its keys and values; its weights stay as they are."""
    from hemorrhage.models.emulation import kv_cache

    if settings.keys == "token":
        kv_cache.round_per_token(model, kv_cache.TokenRounding(settings.bits, settings.group_size))
    else:
        rounding = kv_cache.ChannelRounding(settings.bits, settings.group_size, settings.exact_tokens)
        kv_cache.round_per_channel(model, rounding)
    return Alteration(entries=cache_bytes(model, settings))


def cache_bytes(model: PreTrainedModel, settings: Settings) -> Mapping[str, Json]:
    """Return the bytes that a token adds to the cache, of the base model's cache too (in the dtype of its weights).

    ``cache_exact_tokens``: the newest tokens, which take the base's bytes.
    """
    from hemorrhage.models.emulation.kv_cache import attention_layers

    layers = attention_layers(model)
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * len(layers) * heads * head
    bits = settings.bits + settings.group_bits / settings.group_size
    dense = next(model.parameters()).element_size()
    return {
        "cache_bytes_per_token": numbers * bits / 8,
        "cache_bytes_per_token_base": numbers * dense,
        "cache_exact_tokens": settings.exact_tokens,
    }


METHOD = Method(
    MethodInfo(
        title="Quantized KV cache (KIVI)",
        summary="keys and values at 2 to 8 bits: per token as compressed-tensors has them, or KIVI",
        papers=(Paper("Liu et al.", "2402.02750"),),
        examples=({"bits": 4}, {"bits": 2, "keys": "channel", "residual": 32}),
        storage=("kv_cache",),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
