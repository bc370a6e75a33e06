"""Cached tokens that are evicted once a prompt was read, so that what follows does not see them.

As kvpress evaluates it: a prompt is read in one pass with full attention, then each layer evicts, for each key-value
head, the share ``ratio`` of its tokens whose scores are lowest (hemorrhage.models.emulation.eviction_scores). All later
tokens read what is left, and each other. Positions stay what they were.

- In generation the prompt is what is read into an empty cache in one pass.
- A text that is scored in one pass without a cache is read as if its first half were the prompt: the queries of the
  second half do not see what is evicted of the first. Where a caller knows better, it says so (``prompts``): the prompt
  of a multiple-choice task, but for its last token, which asks for the answer and reads what is left.

Layers with a sliding window forget by themselves and are left alone. Attention is the model's own with a mask more; a
layer that evicts nothing computes bit for bit what it did. Evicted keys stay in memory: their numbers in the cache
become infinite, so that the mark goes wherever the cache is copied, cut or sorted.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from hemorrhage.models.blocks import decoder
from hemorrhage.models.emulation import eviction_scores
from hemorrhage.models.emulation.activations import is_exact
from hemorrhage.models.emulation.evicted import evicted_tokens, scored_prompt
from hemorrhage.models.emulation.kv_cache import EVICTION, attention_layers, refuse_second, write_own
from hemorrhage.models.formats.config import BenchStorage
from hemorrhage.models.refused import RefusedError

ATTENTION = {"sdpa": "hemorrhage_eviction_sdpa", "eager": "hemorrhage_eviction_eager"}
"""transformers' way to compute attention -> the name of the one that evicts and then computes it so."""

STATE = "cache_eviction"
"""Attribute of an attention layer that evicts."""


@dataclass(frozen=True)
class Eviction:
    """What is evicted: the share ``ratio`` of a prompt's tokens, by a ``score`` of eviction_scores and its settings."""

    score: str
    ratio: float
    sinks: int = 0
    window: int = 0
    kernel: int = 0
    future: int = 0


@dataclass
class Reading:
    """How a model is read right now: whether a text is scored, and the tokens of each row's prompt where that is known.

    Shared by the layers of a model.
    """

    is_scored: bool = False
    prompts: Tensor | None = None


@dataclass
class LayerState:
    """What an attention layer knows when it attends: ``cache``, ``turn`` (cosines and sines) are those of this call."""

    eviction: Eviction
    reading: Reading
    rotary: nn.Module | None
    cache: Cache | None = None
    turn: tuple[Tensor, Tensor] | None = None

    def scores(
        self, module: nn.Module, part: tuple[Tensor, Tensor, Tensor], scaling: float, row: int, where: slice
    ) -> Tensor:
        """Return the scores of the tokens ``where`` of a row, of which ``part`` are the queries, keys and values."""
        queries, keys, values = part
        chosen = self.eviction
        if chosen.score == "streaming_llm":
            return eviction_scores.streaming_llm(keys, chosen.sinks)
        if chosen.score == "key_norm":
            return eviction_scores.key_norm(keys)
        if chosen.score == "snapkv":
            kept = keys.shape[1] - evicted_tokens(keys.shape[1], chosen.ratio)
            return eviction_scores.snapkv(queries, keys, scaling, min(chosen.window, kept), chosen.kernel)
        assert self.turn is not None
        cosines, sines = (each[min(row, len(each) - 1), where] for each in self.turn)
        before = _turned_back(module, queries, cosines, sines)
        rotation = self._mean_rotation(module, keys.shape[1], queries)
        return eviction_scores.expected_attention(before, keys, values, rotation, scaling, chosen.sinks)

    def _mean_rotation(self, module: nn.Module, tokens: int, queries: Tensor) -> Tensor:
        """Return the mean of what queries after ``tokens`` positions are multiplied with, [channels, channels]."""
        assert self.rotary is not None
        positions = torch.arange(tokens, tokens + self.eviction.future, device=queries.device)[None]
        cosines, sines = _cosines(self.rotary, module, queries.float(), positions)
        unit = torch.eye(queries.shape[-1], device=queries.device)[None, :, None].expand(-1, -1, positions.shape[1], -1)
        turned, _ = _apply_rotary(module)(unit, unit, cosines.float(), sines.float())
        rotation: Tensor = turned[0].mean(1).T
        return rotation


def install(model: PreTrainedModel) -> None:
    """Let ``model`` evict cached tokens where its configuration says so."""
    own = BenchStorage.of_model(model.config).kv_cache
    if own is not None and EVICTION in own:
        evict(model, Eviction(**{"score": own[EVICTION], **{key: own[key] for key in own if key != EVICTION}}))


def evict(model: PreTrainedModel, eviction: Eviction) -> None:
    """Let ``model`` evict cached tokens, and say so in its configuration. Raises RefusedError where it can't."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    refuse_second(model)
    layers, rotary = check(model, eviction)
    plain = model.config.get_text_config(decoder=True)._attn_implementation
    reading = Reading()
    for name, evicting in ATTENTION.items():
        ALL_ATTENTION_FUNCTIONS.register(evicting, _attend_eager if name == "eager" else _attend_sdpa)
        ALL_MASK_ATTENTION_FUNCTIONS.register(evicting, ALL_MASK_ATTENTION_FUNCTIONS[name])
    for layer in layers:
        setattr(layer, STATE, LayerState(eviction, reading, rotary))
        layer.register_forward_pre_hook(_note_arguments, with_kwargs=True)

    def note_reading(_module: nn.Module, _arguments: Any, keywords: Mapping[str, Any]) -> None:
        reading.is_scored = keywords.get("past_key_values") is None and not keywords.get("use_cache")

    decoder(model).register_forward_pre_hook(note_reading, with_kwargs=True)
    model.set_attn_implementation(ATTENTION[plain])
    entry = {key: value for key, value in asdict(eviction).items() if value or key == "ratio"}
    write_own(model, {EVICTION: entry.pop("score"), **entry})


def check(model: PreTrainedModel, eviction: Eviction) -> tuple[list[Any], nn.Module | None]:
    """Return the attention layers that evict, and the rotary embedding where a score needs it.

    Raises RefusedError where the model's attention can't leave tokens out.
    """
    family = type(model).__name__
    plain = model.config.get_text_config(decoder=True)._attn_implementation
    modules = [inspect.getmodule(type(layer)) for layer in attention_layers(model)]
    if plain not in ATTENTION or not all(hasattr(module, "ALL_ATTENTION_FUNCTIONS") for module in modules):
        raise RefusedError(f"{family} computes attention in its own way, which evicted tokens can't be left out of")
    if getattr(model.config.get_text_config(decoder=True), "kv_lora_rank", None):
        raise RefusedError(f"{family} caches one latent of a token for all of its heads, of which none can be evicted")
    layers = evicting_layers(model)
    if not layers:
        raise RefusedError(f"all attention layers of {family} have a sliding window: there is nothing to evict")
    if eviction.score != "expected_attention":
        return layers, None
    rotary = getattr(decoder(model), "rotary_emb", None)
    head = getattr(layers[0], "head_dim", None)
    if rotary is None or head is None or not hasattr(inspect.getmodule(type(layers[0])), "apply_rotary_pos_emb"):
        raise RefusedError(f"expected_attention turns queries to later positions, and {family} has no rotary embedding")
    cosines, _ = _cosines(rotary, layers[0], torch.zeros(1), torch.zeros(1, 1, dtype=torch.long))
    if cosines.shape[-1] != head:
        raise RefusedError(f"expected_attention needs a rotary embedding of whole heads; {family} turns a part of each")
    return layers, rotary


def evicting_layers(model: PreTrainedModel) -> list[Any]:
    """Return the attention layers of ``model`` that have no sliding window."""
    caches: list[Any] = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    windows = [getattr(layer, "sliding_window", None) for layer in caches]
    return [
        layer for layer in attention_layers(model) if layer.layer_idx >= len(windows) or not windows[layer.layer_idx]
    ]


def evicts(model: PreTrainedModel) -> bool:
    """Return whether ``model`` evicts cached tokens."""
    return any(hasattr(module, STATE) for module in model.modules())


@contextlib.contextmanager
def prompts(model: PreTrainedModel, lengths: list[int]) -> Iterator[None]:
    """Say inside how many tokens of each row that ``model`` scores are its prompt, from the row's first on."""
    readings = {id(state.reading): state.reading for state in map(_state, model.modules()) if state is not None}
    try:
        for reading in readings.values():
            reading.prompts = torch.tensor(lengths)
        yield
    finally:
        for reading in readings.values():
            reading.prompts = None


def _state(module: nn.Module) -> LayerState | None:
    return getattr(module, STATE, None)


def _note_arguments(module: nn.Module, _arguments: Any, keywords: Mapping[str, Any]) -> None:
    state: LayerState = getattr(module, STATE)
    state.cache, state.turn = keywords.get("past_key_values"), keywords.get("position_embeddings")


def _attend_sdpa(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return _attend(sdpa_attention_forward, module, query, key, value, attention_mask, **keywords)


def _attend_eager(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, Tensor | None]:
    family: Any = inspect.getmodule(type(module))
    return _attend(family.eager_attention_forward, module, query, key, value, attention_mask, **keywords)


def _attend(
    plain: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plain`` does to what is not evicted, and evict after a prompt was read.

    ``query`` [batch, heads, m, channels] are the newest m of the n tokens of ``key`` and ``value`` [batch, key-value
    heads, n, channels]; ``attention_mask`` is what ``plain`` takes: bool, added, or None for causal.
    """
    state, new, length = _state(module), query.shape[2], key.shape[2]
    output: tuple[Tensor, Tensor | None]
    if state is None or is_exact() or not state.eviction.ratio:
        output = plain(module, query, key, value, attention_mask, **keywords)
        return output
    if new < length:
        evicted = key[..., 0].isinf()
        key, hidden = key.masked_fill(evicted[..., None], 0), evicted[:, :, None]
    else:
        is_scored = state.cache is None or state.reading.is_scored
        scaling = keywords.get("scaling") or query.shape[-1] ** -0.5
        evicted, ends = _choose(state, module, (query, key, value), attention_mask, scaling, is_scored)
        if state.cache is not None and not is_scored:
            output = plain(module, query, key, value, attention_mask, **keywords)
            layer: Any = state.cache.layers[module.layer_idx]
            layer.keys = key.masked_fill(evicted[..., None], math.inf)
            return output
        after = torch.arange(length, device=key.device) >= ends[:, None]
        hidden = evicted[:, :, None] & after[:, None, :, None]
    if bool(hidden.any()):
        hidden = hidden.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        attention_mask = _with_hidden(attention_mask, hidden, new, length)
    output = plain(module, query, key, value, attention_mask, **keywords)
    return output


def _choose(
    state: LayerState,
    module: nn.Module,
    parts: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    scaling: float,
    is_scored: bool,
) -> tuple[Tensor, Tensor]:
    """Return which tokens are evicted, bool [batch, key-value heads, n], and where prompts end, int64 [batch]."""
    key = parts[1]
    batch, heads, length = key.shape[:3]
    evicted = torch.zeros(batch, heads, length, dtype=torch.bool, device=key.device)
    starts, tokens = _text(attention_mask, batch, length)
    prompts = state.reading.prompts if is_scored else None
    ends = []
    for row in range(batch):
        number = tokens[row]
        if is_scored:
            number = scored_prompt(number) if prompts is None else min(int(prompts[row]), number)
        where = slice(starts[row], starts[row] + number)
        ends.append(where.stop)
        if number:
            queries, keys, values = (part[row, :, where] for part in parts)
            scores = state.scores(module, (queries, keys, values), scaling, row, where)
            evicted[row, :, where] = eviction_scores.lowest(scores, state.eviction.ratio)
    return evicted, torch.tensor(ends, device=key.device)


def _text(attention_mask: Tensor | None, batch: int, length: int) -> tuple[list[int], list[int]]:
    """Return where each row's text starts behind its padding, and how many tokens it has: those its last one sees."""
    if attention_mask is None:
        return [0] * batch, [length] * batch
    last = attention_mask[:, 0, -1, :length]
    seen = (last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2).expand(batch, -1)
    return seen.int().argmax(-1).tolist(), seen.sum(-1).tolist()


def _with_hidden(attention_mask: Tensor | None, hidden: Tensor, new: int, length: int) -> Tensor:
    """Return the mask, causal where there is none, that leaves out ``hidden`` [batch, heads, m or 1, n], too."""
    if attention_mask is None:
        positions = torch.arange(length, device=hidden.device)
        return (positions <= positions[length - new :, None]) & ~hidden
    mask = attention_mask[..., :length]
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def _turned_back(module: nn.Module, queries: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return ``queries`` [heads, tokens, channels] as they were before ``cosines`` and ``sines`` [tokens, channels]."""
    wide, cosines, sines = queries.float(), cosines.float(), sines.float()
    back, _ = _apply_rotary(module)(wide[None], wide[None], cosines[None], -sines[None])
    # Embeddings of longer contexts scale what they turn.
    before: Tensor = back[0] / (cosines.square() + sines.square())
    return before


def _apply_rotary(module: nn.Module) -> Any:
    family: Any = inspect.getmodule(type(module))
    return family.apply_rotary_pos_emb


def _cosines(rotary: nn.Module, module: nn.Module, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of ``positions`` [1, n] that a layer turns its queries by, [1, n, channels] each."""
    named = inspect.signature(rotary.forward).parameters
    extra = {"layer_type": getattr(module, "layer_type", None)} if "layer_type" in named else {}
    pair: tuple[Tensor, Tensor] = rotary(like, positions, **extra)
    return pair
