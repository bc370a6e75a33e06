"""Keys and values that are rounded as they enter the cache, after the rotary embedding.

The grids are hemorrhage.models.emulation.cache_grids'.

With a cache or without one: a token's keys and values are rounded before any query reads them, so a
forward pass over a whole text computes what decoding it token by token would.

Per token (``TokenRounding``): for each token and head, groups of neighbouring channels share an asymmetric
grid: ``s = (max - min) / (2^b - 1)`` in float16, ``z = round(-2^(b-1) - min / s)``, ``q = clamp(round(x / s +
z), -2^(b-1), 2^(b-1) - 1)``, read back as ``(q - z) s``; zero is always on the grid, ``max`` at least 0 and ``min`` at
most. This is compressed-tensors' grid, which writes and reads it as a ``kv_cache_scheme`` of strategy ``group``, so
transformers computes the same without this bench. It is not KIVI's.

Per token and head (``HeadRounding``): vLLM's ``--kv-cache-dtype int8_per_token_head``, ``int4_per_token_head`` and
``fp8_per_token_head``. No checkpoint says it to vLLM, so it is under ``hemorrhage`` in config.json.

FP8 with fixed scales (``FixedRounding``): keys and values become numbers of E4M3 times scales that were fixed when the
checkpoint was written, one a layer (``tensor``) or one a key-value head (``attn_head``). compressed-tensors and vLLM
read it: a ``kv_cache_scheme``, and tensors ``k_scale`` and ``v_scale`` of each attention layer. Of checkpoints that
others published the bench keeps the scales of all layers under ``hemorrhage`` in config.json.

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

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from hemorrhage.models.blocks import blocks
from hemorrhage.models.emulation import cache_grids
from hemorrhage.models.emulation.activations import RoundingHook, is_exact
from hemorrhage.models.formats.config import CACHE_SCALES, BenchStorage, QuantizationArgs
from hemorrhage.models.refused import RefusedError

SCALES = "e4m3_scales"
"""Key of ``kv_cache`` in the bench's entry of config.json: the scales of keys and values of each attention layer."""

PER_TOKEN_AND_HEAD: Mapping[str, Callable[[Tensor], Tensor]] = {
    "int8": cache_grids.round_int8,
    "int4": cache_grids.round_int4,
    "fp8": cache_grids.round_fp8,
}
"""What vLLM calls ``<name>_per_token_head`` -> how it rounds."""

EVICTION = "evicted_by"
"""Key of ``kv_cache`` in the bench's entry of config.json where tokens are evicted (models.emulation.eviction)."""

OLD_CACHE = "layer_past"
"""How attention that transformers has not renamed yet calls its cache (GPT-NeoX)."""

ATTENTION = "hemorrhage_channel_keys"
"""Name of KIVI's attention in transformers' register."""


class CacheHook:
    """A hook before an attention layer that gives it a cache which rounds, or looks at, keys and values."""

    def __call__(
        self, _module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the layer's arguments, with a cache that rounds in front of the one it was given, or of none."""
        if is_exact():
            return arguments, keywords
        return arguments, {**keywords, "past_key_values": _Rounded(keywords.get("past_key_values"), self)}

    def keys(self, keys: Tensor) -> Tensor:
        """Round ``keys`` [batch, heads, tokens, channels]."""
        raise NotImplementedError

    def values(self, values: Tensor) -> Tensor:
        """Round ``values`` [batch, heads, tokens, channels]."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenRounding(CacheHook):
    """compressed-tensors' integers, each token in groups of channels; ``value_bits`` where values have others."""

    bits: int
    group_size: int
    value_bits: int | None = None

    def keys(self, keys: Tensor) -> Tensor:
        """Round ``keys`` [..., channels] in groups of channels."""
        return self._round(keys, self.bits)

    def values(self, values: Tensor) -> Tensor:
        """Round ``values`` [..., channels] in groups of channels."""
        return self._round(values, self.value_bits or self.bits)

    def _round(self, x: Tensor, bits: int) -> Tensor:
        return cache_grids.round_groups(x.unflatten(-1, (-1, self.group_size)), bits).flatten(-2)


@dataclass(frozen=True)
class HeadRounding(CacheHook):
    """vLLM's numbers, ``int8``, ``int4`` or ``fp8``, with a scale for each token and head."""

    key_format: str
    value_format: str

    def keys(self, keys: Tensor) -> Tensor:
        """Round ``keys`` [..., channels]."""
        return PER_TOKEN_AND_HEAD[self.key_format](keys)

    def values(self, values: Tensor) -> Tensor:
        """Round ``values`` [..., channels]."""
        return PER_TOKEN_AND_HEAD[self.value_format](values)


@dataclass(frozen=True)
class FixedRounding(CacheHook):
    """E4M3 with one scale of the layer, or one for each key-value head."""

    key_scales: tuple[float, ...]
    value_scales: tuple[float, ...]

    def keys(self, keys: Tensor) -> Tensor:
        """Round ``keys`` [batch, heads, tokens, channels]."""
        return cache_grids.round_fixed(keys, self.key_scales)

    def values(self, values: Tensor) -> Tensor:
        """Round ``values`` [batch, heads, tokens, channels]."""
        return cache_grids.round_fixed(values, self.value_scales)


class LargestHook(CacheHook):
    """A hook that leaves keys and values alone and keeps the largest magnitude of each head's, float32 [heads]."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def keys(self, keys: Tensor) -> Tensor:
        """Look at ``keys`` [batch, heads, tokens, channels]."""
        self.key = _larger(self.key, keys)
        return keys

    def values(self, values: Tensor) -> Tensor:
        """Look at ``values`` [batch, heads, tokens, channels]."""
        self.value = _larger(self.value, values)
        return values


def _larger(before: Tensor | None, x: Tensor) -> Tensor:
    largest = x.abs().amax((0, 2, 3)).float().cpu()
    return largest if before is None else torch.maximum(before, largest)


@dataclass(frozen=True)
class ChannelRounding:
    """KIVI: keys per channel in groups of ``group_size`` tokens, values per token in groups of channels.

    ``value_bits`` where values have others.
    """

    bits: int
    group_size: int
    residual: int
    value_bits: int | None = None

    def keys(self, keys: Tensor) -> Tensor:
        """Round the complete groups of tokens of ``keys`` [..., tokens, channels]; the others stay exact."""
        complete = keys.shape[-2] // self.group_size * self.group_size
        groups = keys[..., :complete, :].transpose(-1, -2).unflatten(-1, (-1, self.group_size))
        rounded = cache_grids.round_range(groups, self.bits).flatten(-2).transpose(-1, -2)
        return torch.cat([rounded, keys[..., complete:, :]], dim=-2)

    def values(self, values: Tensor) -> Tensor:
        """Round all of ``values`` [..., tokens, channels]."""
        groups = values.unflatten(-1, (-1, self.group_size))
        return cache_grids.round_range(groups, self.value_bits or self.bits).flatten(-2)

    def old(self, position: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return which tokens at the positions ``key`` [n] a query at ``position`` [m] sees rounded.

        Two bool [m, n]: of the keys, of the values.
        """
        before = torch.zeros_like(position)[:, None] if is_exact() else position[:, None]
        return key < before // self.residual * self.residual, key < before - self.residual


class _Rounded:
    """A cache in front of another one that rounds what it is given, for one call of an attention layer."""

    def __init__(self, cache: Cache | None, rounding: CacheHook) -> None:
        self._cache = cache
        self._rounding = rounding

    def update(self, keys: Tensor, values: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._rounding.keys(keys), self._rounding.values(values)
        return (keys, values) if self._cache is None else self._cache.update(keys, values, *arguments, **keywords)

    def get_seq_length(self, *arguments: Any) -> int:
        return 0 if self._cache is None else self._cache.get_seq_length(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def install(model: PreTrainedModel, scheme: QuantizationArgs | None, tensors: Mapping[str, Tensor]) -> None:
    """Round keys and values as ``scheme``, config.json's ``kv_cache_scheme``, says, or as the bench's own entry does.

    ``tensors`` are the checkpoint's, of which fixed scales are read. Raises ValueError for schemes that this bench
    never writes, and where a block's attention takes no cache.
    """
    own = BenchStorage.of_model(model.config).kv_cache
    if own is not None and EVICTION in own:
        own = None
    if scheme is not None and scheme.get("dynamic") is False:
        names = {id(module): name for name, module in model.named_modules()}
        layers = [names[id(layer)] for layer in attention_layers(model)]
        scales = [tuple(tensors[f"{layer}.{which}"] for which in CACHE_SCALES) for layer in layers]
        _check(scheme, fixed_args(scales[0][0].numel() > 1))
        round_to_scales(model, scales)
    elif scheme is not None:
        rounding = TokenRounding(scheme["num_bits"], scheme.get("group_size") or 0)
        _check(scheme, quantization_args(rounding))
        round_per_token(model, rounding)
    if own is not None and SCALES in own:
        round_fixed(model, own[SCALES])
    elif own is not None and "key_format" in own:
        round_per_head(model, HeadRounding(**own))
    elif own is not None and "residual" in own:
        round_per_channel(model, ChannelRounding(**own))
    elif own is not None:
        round_per_token(model, TokenRounding(**own))


def _check(scheme: QuantizationArgs, known: QuantizationArgs) -> None:
    given = {key: value for key, value in scheme.items() if value is not None}
    if any(given.get(key) != value for key, value in known.items()):
        raise ValueError(f"keys and values quantized as {scheme} can't be emulated")


def has_rounding(model: PreTrainedModel) -> bool:
    """Return whether ``model`` rounds inputs of layers, keys or values, or evicts these, when it computes."""
    return any(
        hasattr(module, "kv_cache_rounding")
        or hasattr(module, "cache_eviction")
        or any(isinstance(hook, RoundingHook | CacheHook) for hook in module._forward_pre_hooks.values())
        for module in model.modules()
    )


@contextlib.contextmanager
def largest_magnitudes(model: PreTrainedModel) -> Iterator[list[LargestHook]]:
    """Look at the keys and values that attention layers compute inside; the hooks of all layers, in order."""
    layers = attention_layers(model)
    hooks = [LargestHook() for _ in layers]
    handles = [
        layer.register_forward_pre_hook(hook, with_kwargs=True) for layer, hook in zip(layers, hooks, strict=True)
    ]
    try:
        yield hooks
    finally:
        for handle in handles:
            handle.remove()


def round_per_token(model: PreTrainedModel, rounding: TokenRounding) -> None:
    """Let every attention layer of ``model`` round, and say so in its configuration."""
    _register(model, [rounding] * len(attention_layers(model)))
    if rounding.value_bits in (None, rounding.bits):
        _write_scheme(model, quantization_args(rounding))
    else:
        write_own(model, asdict(rounding))


def round_per_head(model: PreTrainedModel, rounding: HeadRounding) -> None:
    """Let every attention layer of ``model`` round as vLLM does per token and head; say so in its configuration."""
    _register(model, [rounding] * len(attention_layers(model)))
    write_own(model, asdict(rounding))


def round_to_scales(model: PreTrainedModel, scales: Sequence[tuple[Tensor, ...]]) -> None:
    """Let every attention layer of ``model`` round to E4M3 with scales that it keeps, and say so.

    ``scales``: those of keys and of values of each layer, in order, [1] or one for each head [heads, 1, 1].
    """
    roundings = [FixedRounding(*(tuple(each.flatten().tolist()) for each in pair)) for pair in scales]
    _register(model, roundings)
    for layer, pair in zip(attention_layers(model), scales, strict=True):
        for name, scale in zip(CACHE_SCALES, pair, strict=True):
            layer.register_buffer(name, scale.detach().clone())
    _write_scheme(model, fixed_args(scales[0][0].numel() > 1))


def round_fixed(model: PreTrainedModel, scales: Sequence[Sequence[float]]) -> None:
    """Let every attention layer of ``model`` round to E4M3, and say so in its configuration.

    ``scales``: those of keys and of values of each layer, in order. Raises ValueError where there are not as many.
    """
    _register(model, [FixedRounding((key,), (value,)) for key, value in scales])
    write_own(model, {SCALES: [list(pair) for pair in scales]})


def _register(model: PreTrainedModel, roundings: Sequence[CacheHook]) -> None:
    refuse_second(model)
    for layer, rounding in zip(attention_layers(model), roundings, strict=True):
        layer.register_forward_pre_hook(rounding, with_kwargs=True)


def _write_scheme(model: PreTrainedModel, scheme: QuantizationArgs) -> None:
    model.config.quantization_config = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "quantization_status": "frozen",
        "config_groups": {},
        "ignore": [],
        "kv_cache_scheme": scheme,
    }


def write_own(model: PreTrainedModel, entry: Mapping[str, Any]) -> None:
    """Write ``entry``, without what is None, as ``kv_cache`` of the bench's entry in the model's configuration."""
    model.config.hemorrhage = {
        **(getattr(model.config, "hemorrhage", None) or {}),
        "kv_cache": {key: value for key, value in entry.items() if value is not None},
    }


def round_per_channel(model: PreTrainedModel, rounding: ChannelRounding) -> None:
    """Let ``model`` attend as KIVI does, and say so in its configuration."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    refuse_second(model)
    for layer in attention_layers(model):
        layer.kv_cache_rounding = rounding
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model.set_attn_implementation(ATTENTION)
    write_own(model, asdict(rounding))


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


def fixed_args(is_per_head: bool) -> QuantizationArgs:
    """Return E4M3 with fixed scales as compressed-tensors' ``kv_cache_scheme`` has it."""
    strategy = "attn_head" if is_per_head else "tensor"
    return {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False}


def cached_numbers(model: PreTrainedModel) -> int:
    """Return how many numbers the keys and the values of a token are in one layer's cache."""
    config = model.config.get_text_config()
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * heads * head_dim(model)


def head_dim(model: PreTrainedModel) -> int:
    """Return the channels of a head."""
    config = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


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
        for module in blocks(model)[0].modules():
            if _takes_keys(module, OLD_CACHE):
                name = type(module).__name__
                raise RefusedError(f"{name} takes its cache as {OLD_CACHE}, which can't be rounded or evicted")
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


def _takes_keys(module: nn.Module, cache: str = "past_key_values") -> bool:
    """Return whether a module attends with a cache; state-space and convolution layers keep their states in it."""
    takes = cache in inspect.signature(module.forward).parameters
    return takes and "attention" in type(module).__name__.lower()


def refuse_second(model: PreTrainedModel) -> None:
    """Raise ValueError where a model rounds or evicts keys and values already."""
    scheme = (getattr(model.config, "quantization_config", None) or {}).get("kv_cache_scheme")
    if scheme or any(_rounds(layer) for layer in attention_layers(model)):
        raise ValueError("keys and values are quantized or evicted already")


def _rounds(layer: nn.Module) -> bool:
    hooks = layer._forward_pre_hooks.values()
    is_marked = hasattr(layer, "kv_cache_rounding") or hasattr(layer, "cache_eviction")
    return is_marked or any(isinstance(hook, CacheHook) for hook in hooks)
