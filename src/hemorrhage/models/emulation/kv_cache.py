"""Keys and values that are rounded as they enter the cache, after the rotary embedding.

With a cache or without one: a token's keys and values are rounded before any query reads them, so a
forward pass over a whole text computes what decoding it token by token would.

Per token (``TokenRounding``): for each token and head, groups of neighbouring channels share an asymmetric
grid: ``s = (max - min) / (2^b - 1)`` in float16, ``z = round(-2^(b-1) - min / s)``, ``q = clamp(round(x / s +
z), -2^(b-1), 2^(b-1) - 1)``, read back as ``(q - z) s``; zero is always on the grid, ``max`` at least 0 and ``min`` at
most. This is compressed-tensors' grid, which writes and reads it as a ``kv_cache_scheme`` of strategy ``group``, so
transformers computes the same without this bench. It is not KIVI's.

FP8 (``FixedRounding``), as checkpoints that others published ask for: keys and values become numbers of E4M3 times a
scale of each that was fixed when the checkpoint was written. The bench keeps the scales of all layers under
``hemorrhage`` in config.json.

Keys per channel (``ChannelRounding``): KIVI (Liu et al., arXiv 2402.02750). A group's grid reaches from its smallest
number to its largest, zero or not: ``q = round((x - m) / s)``, read back as ``q s + m``, with ``m = min`` and
``s = (max - min) / (2^b - 1)`` in float16. A channel's keys share a grid in groups of consecutive tokens, values are
rounded per token in groups of channels, and the newest of both are still exact: keys until
``residual`` of them are complete, values for ``residual`` tokens. What a query sees of an older token thus
depends on the query. The cache keeps the exact ones and the attention reads each query's own view of them, in
the order of the authors' code: a new token attends first, then the oldest are rounded. The prompt is read as
if it had been decoded token by token; the authors' code lets the prompt's tokens see each other exactly. No
other library reads this back, so it is stored under ``hemorrhage`` in config.json.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from hemorrhage.models.blocks import blocks
from hemorrhage.models.emulation.activations import RoundingHook, is_exact
from hemorrhage.models.formats import small_floats
from hemorrhage.models.formats.config import BenchStorage, QuantizationArgs
from hemorrhage.models.refused import RefusedError

SCALES = "e4m3_scales"
"""Key of ``kv_cache`` in the bench's entry of config.json: the scales of keys and values of each attention layer."""

ATTENTION = "hemorrhage_channel_keys"
"""Name of KIVI's attention in transformers' register."""


@dataclass(frozen=True)
class TokenRounding:
    """A hook before an attention layer that rounds the keys and values it makes, per token."""

    bits: int
    group_size: int

    def __call__(
        self, _module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the layer's arguments, with a cache that rounds in front of the one it was given, or of none."""
        return _with_rounded_cache(arguments, keywords, self)

    def keys(self, keys: Tensor) -> Tensor:
        """Round ``keys`` [..., channels] in groups of channels."""
        return round_groups(keys.unflatten(-1, (-1, self.group_size)), self.bits).flatten(-2)

    def values(self, values: Tensor) -> Tensor:
        """Round ``values`` [..., channels] in groups of channels."""
        return self.keys(values)


@dataclass(frozen=True)
class FixedRounding:
    """A hook before an attention layer that rounds the keys and values it makes to E4M3 with a scale of each."""

    key_scale: float
    value_scale: float

    def __call__(
        self, _module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the layer's arguments, with a cache that rounds in front of the one it was given, or of none."""
        return _with_rounded_cache(arguments, keywords, self)

    def keys(self, keys: Tensor) -> Tensor:
        """Round ``keys`` of any shape."""
        return _round_e4m3(keys, self.key_scale)

    def values(self, values: Tensor) -> Tensor:
        """Round ``values`` of any shape."""
        return _round_e4m3(values, self.value_scale)


def _round_e4m3(x: Tensor, scale: float) -> Tensor:
    return small_floats.round_e4m3(x.float() / scale).mul_(scale).to(x.dtype)


def _with_rounded_cache(
    arguments: tuple[Any, ...], keywords: dict[str, Any], rounding: TokenRounding | FixedRounding
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if is_exact():
        return arguments, keywords
    return arguments, {**keywords, "past_key_values": _Rounded(keywords.get("past_key_values"), rounding)}


@dataclass(frozen=True)
class ChannelRounding:
    """KIVI: keys per channel in groups of ``group_size`` tokens, values per token in groups of channels."""

    bits: int
    group_size: int
    residual: int

    def keys(self, keys: Tensor) -> Tensor:
        """Round the complete groups of tokens of ``keys`` [..., tokens, channels]; the others stay exact."""
        complete = keys.shape[-2] // self.group_size * self.group_size
        groups = keys[..., :complete, :].transpose(-1, -2).unflatten(-1, (-1, self.group_size))
        rounded = round_range(groups, self.bits).flatten(-2).transpose(-1, -2)
        return torch.cat([rounded, keys[..., complete:, :]], dim=-2)

    def values(self, values: Tensor) -> Tensor:
        """Round all of ``values`` [..., tokens, channels]."""
        return round_range(values.unflatten(-1, (-1, self.group_size)), self.bits).flatten(-2)

    def old(self, position: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return which tokens at the positions ``key`` [n] a query at ``position`` [m] sees rounded.

        Two bool [m, n]: of the keys, of the values.
        """
        before = torch.zeros_like(position)[:, None] if is_exact() else position[:, None]
        return key < before // self.residual * self.residual, key < before - self.residual


def round_groups(groups: Tensor, bits: int) -> Tensor:
    """Round ``groups`` [..., elements] to compressed-tensors' asymmetric grid each, in their dtype."""
    x = groups.float()
    low, high = x.amin(-1, keepdim=True).clamp_(max=0), x.amax(-1, keepdim=True).clamp_(min=0)
    half = 2 ** (bits - 1)
    exact = (high - low) / (2**bits - 1)
    zero = torch.where(exact == 0, 0, -half - low / exact).clamp_(-half, half - 1).round_()
    scale = exact.clamp(max=torch.finfo(torch.float16).max).half().float()
    scale = torch.where(scale == 0, torch.finfo(torch.float16).eps, scale)
    return (x / scale).add_(zero).round_().clamp_(-half, half - 1).sub_(zero).mul_(scale).to(groups.dtype)


def round_range(groups: Tensor, bits: int) -> Tensor:
    """Round ``groups`` [..., elements] to KIVI's grid each, from the smallest to the largest, in their dtype."""
    x, largest = groups.float(), torch.finfo(torch.float16).max
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp(max=largest).half().float()
    low = low.clamp(-largest, largest).half().float()
    # Numbers that are all alike read back as the smallest by any scale.
    scale = torch.where(scale == 0, 1, scale)
    return (x - low).div_(scale).round_().clamp_(0, 2**bits - 1).mul_(scale).add_(low).to(groups.dtype)


class _Rounded:
    """A cache in front of another one that rounds what it is given, for one call of an attention layer."""

    def __init__(self, cache: Cache | None, rounding: TokenRounding | FixedRounding) -> None:
        self._cache = cache
        self._rounding = rounding

    def update(self, keys: Tensor, values: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._rounding.keys(keys), self._rounding.values(values)
        return (keys, values) if self._cache is None else self._cache.update(keys, values, *arguments, **keywords)

    def get_seq_length(self, *arguments: Any) -> int:
        return 0 if self._cache is None else self._cache.get_seq_length(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def install(model: PreTrainedModel, scheme: QuantizationArgs | None) -> None:
    """Round keys and values as ``scheme``, config.json's ``kv_cache_scheme``, says, or as KIVI's entry does.

    Raises ValueError for schemes that this bench never writes, and where a block's attention takes no cache.
    """
    own = BenchStorage.of_model(model.config).kv_cache
    if scheme is not None:
        rounding = TokenRounding(scheme["num_bits"], scheme.get("group_size") or 0)
        given = {key: value for key, value in scheme.items() if value is not None}
        if any(given.get(key) != value for key, value in quantization_args(rounding).items()):
            raise ValueError(f"keys and values quantized as {scheme} can't be emulated")
        round_per_token(model, rounding)
    if own is not None and SCALES in own:
        round_fixed(model, own[SCALES])
    elif own is not None:
        round_per_channel(model, ChannelRounding(**own))


def has_rounding(model: PreTrainedModel) -> bool:
    """Return whether ``model`` rounds inputs of layers, keys or values when it computes."""
    return any(
        hasattr(module, "kv_cache_rounding")
        or any(
            isinstance(hook, RoundingHook | TokenRounding | FixedRounding)
            for hook in module._forward_pre_hooks.values()
        )
        for module in model.modules()
    )


def round_per_token(model: PreTrainedModel, rounding: TokenRounding) -> None:
    """Let every attention layer of ``model`` round, and say so in its configuration."""
    _refuse_second(model)
    for layer in attention_layers(model):
        layer.register_forward_pre_hook(rounding, with_kwargs=True)
    model.config.quantization_config = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "quantization_status": "frozen",
        "config_groups": {},
        "ignore": [],
        "kv_cache_scheme": quantization_args(rounding),
    }


def round_fixed(model: PreTrainedModel, scales: Sequence[Sequence[float]]) -> None:
    """Let every attention layer of ``model`` round to E4M3, and say so in its configuration.

    ``scales``: those of keys and of values of each layer, in order. Raises ValueError where there are not as many.
    """
    _refuse_second(model)
    for layer, (key_scale, value_scale) in zip(attention_layers(model), scales, strict=True):
        layer.register_forward_pre_hook(FixedRounding(key_scale, value_scale), with_kwargs=True)
    model.config.hemorrhage = {
        **(getattr(model.config, "hemorrhage", None) or {}),
        "kv_cache": {SCALES: [list(pair) for pair in scales]},
    }


def round_per_channel(model: PreTrainedModel, rounding: ChannelRounding) -> None:
    """Let ``model`` attend as KIVI does, and say so in its configuration."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    _refuse_second(model)
    for layer in attention_layers(model):
        layer.kv_cache_rounding = rounding
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model.set_attn_implementation(ATTENTION)
    model.config.hemorrhage = {
        **(getattr(model.config, "hemorrhage", None) or {}),
        "kv_cache": asdict(rounding),
    }


def quantization_args(rounding: TokenRounding) -> QuantizationArgs:
    """Return the rounding as compressed-tensors' ``kv_cache_scheme`` has it."""
    return {
        "num_bits": rounding.bits,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": rounding.group_size,
        "dynamic": True,
        "scale_dtype": "torch.float16",
    }


def attention_layers(model: PreTrainedModel) -> list[Any]:
    """Return the modules that hand keys and values to the cache, one of each decoder block that attends.

    Raises RefusedError where none does, and where a block has several.
    """
    layers: list[Any] = []
    for index, block in enumerate(blocks(model)):
        takers = [module for module in block.modules() if module is not block and _takes_keys(module)]
        if len(takers) > 1:
            raise RefusedError(
                f"block {index} of {type(model).__name__} has {len(takers)} attention layers with a cache, not 1"
            )
        layers += takers
    if not layers:
        raise RefusedError(f"no block of {type(model).__name__} hands keys and values to a cache that can be rounded")
    return layers


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """KIVI's attention over exact keys and values, of which each query sees the older ones rounded.

    ``query`` [batch, heads, m, channels] are the newest m of the n tokens of ``key`` and ``value`` [batch,
    key heads, n, channels]; ``attention_mask`` is added, [batch, 1, m, n]. Returns [batch, m, heads,
    channels] and the weights. Tokens are counted from the first of the sequence, padding included.
    """
    rounding: ChannelRounding = module.kv_cache_rounding
    heads = query.shape[1] // key.shape[1]
    new, length = query.shape[2], key.shape[2]
    position = torch.arange(length, device=query.device)
    old_keys, old_values = rounding.old(position[length - new :], position)
    future = position > position[length - new :, None]

    def every_head(x: Tensor) -> Tensor:
        return x.repeat_interleave(heads, dim=1)

    rounded_scores = query @ every_head(rounding.keys(key)).transpose(2, 3)
    scores = torch.where(old_keys, rounded_scores, query @ every_head(key).transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.masked_fill(future, -torch.inf).softmax(-1, dtype=torch.float32).to(query.dtype)
    read = (weights * old_values) @ every_head(rounding.values(value))
    read = read + (weights * ~old_values) @ every_head(value)
    return read.transpose(1, 2).contiguous(), weights


def _takes_keys(module: nn.Module) -> bool:
    """Return whether a module attends with a cache; state-space and convolution layers keep their states in it."""
    takes = "past_key_values" in inspect.signature(module.forward).parameters
    return takes and "attention" in type(module).__name__.lower()


def _refuse_second(model: PreTrainedModel) -> None:
    scheme = (getattr(model.config, "quantization_config", None) or {}).get("kv_cache_scheme")
    if scheme or any(_rounds(layer) for layer in attention_layers(model)):
        raise ValueError("keys and values are quantized already")


def _rounds(layer: nn.Module) -> bool:
    hooks = layer._forward_pre_hooks.values()
    return hasattr(layer, "kv_cache_rounding") or any(isinstance(hook, FixedRounding) for hook in hooks)
