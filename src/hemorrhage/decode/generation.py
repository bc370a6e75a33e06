"""The one way into ``model.generate`` for all strategies, with nothing from the model's defaults but where asked for.

transformers fills what a call leaves open from the model's ``generation_config.json`` and then from its own
table, where ``top_k`` is 50 and not off. Here every parameter is written out, so that a strategy is what
params.yaml says it is and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict
from weakref import WeakKeyDictionary

from hemorrhage.decode.early_exit import keep_depth
from hemorrhage.decode.stops import Stops
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

Option = bool | int | float | None
"""Value of a field of transformers' GenerationConfig."""

NEUTRAL: Mapping[str, Option] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "use_cache": True,
}
"""Generation parameters that change nothing: plain greedy search."""

UNTRUNCATED: Mapping[str, Option] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Sampling parameters that change nothing: draws from the model's own distribution."""


@dataclass(frozen=True)
class Decoding:
    """How a strategy takes tokens from a model: arguments of ``continuation``.

    ``options``: fields of GenerationConfig that replace the neutral ones; ``search``: a built-in decoding loop for
    ``custom_generate``, called with ``search_settings``; ``processors``: built-in logits processors; ``drafting``:
    fields that assisted generation reads from the model's defaults alone; ``one_by_one``: it takes one text at a time;
    ``stop``: strings that end a text, which whoever has a tokenizer looks for; ``shipped``: the model's own defaults
    say everything, and of the rest only whether it samples is read.
    """

    options: Mapping[str, Option] = field(default_factory=dict)
    search: Callable[..., torch.Tensor] | None = None
    search_settings: Mapping[str, object] = field(default_factory=dict)
    processors: Sequence[Callable[..., torch.Tensor]] = ()
    drafting: Mapping[str, Option | str] = field(default_factory=dict)
    one_by_one: bool = False
    stop: Sequence[str] = ()
    shipped: bool = False

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return bool(self.options.get("do_sample"))


@dataclass(frozen=True)
class Reading:
    """A batch of prompts that a model has read up to, not including, their last tokens.

    ``cache`` holds their keys and values, ``states`` [batch, length - 1, width] their final hidden states.
    Every strategy of a sweep starts from the same prompts, so they are read once and copied.
    """

    cache: Cache
    states: torch.Tensor

    def copied_cache(self, repeats: int = 1) -> Cache:
        """Return a cache of its own for one run, every row ``repeats`` times in succession."""
        cache = copy.deepcopy(self.cache)
        if repeats > 1:
            repeat_rows(cache, repeats)
        return cache

    def repeated(self, times: int) -> Reading:
        """Return the same of a batch in which every row is repeated ``times`` times in succession."""
        return Reading(self.copied_cache(times), self.states.repeat_interleave(times, 0))


def repeat_rows(cache: Cache, times: int) -> None:
    """Make every row of a cache stand ``times`` times in succession."""
    for layer in cache.layers:
        states = _recurrent_states(layer)
        if states:
            rows: Any = torch.arange(len(states[0]), device=states[0].device).repeat_interleave(times)
            layer.reorder_cache(rows)
        elif hasattr(layer, "batch_repeat_interleave"):
            layer.batch_repeat_interleave(times)


def select_rows(cache: Cache, rows: Any) -> None:
    """Make the rows of a cache those at ``rows``, int64 [n]."""
    for layer in cache.layers:
        if _recurrent_states(layer):
            layer.reorder_cache(rows)
        elif hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(rows)


def _recurrent_states(layer: Any) -> list[torch.Tensor]:
    """Return the states of a layer besides keys and values, for which transformers knows reordering alone."""
    parts = (getattr(layer, "conv_states", None) or {}, getattr(layer, "recurrent_states", None) or {})
    return [state for part in parts for state in part.values() if state is not None]


def read(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Reading | None:
    """Read a left-padded batch of prompts.

    None where they are one token long and leave nothing to read, and where the model goes on from no cache that it is
    given: it then reads them with each strategy.
    """
    from transformers import DynamicCache

    if input_ids.shape[1] < 2 or not takes_cache(model):
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with torch.no_grad():
        _, states = forward(model, input_ids[:, :-1], attention_mask[:, :-1], cache)
    return Reading(cache, states)


def forward(
    model: PreTrainedModel, tokens: torch.Tensor, attention_mask: torch.Tensor, cache: Cache, logits: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a forward pass over ``tokens`` [batch, n] after what ``cache`` holds, which grows by them.

    ``attention_mask`` [batch, cached + n] covers both. Returns the float32 logits of the last ``logits``
    positions [batch, logits, vocabulary] and the final hidden states [batch, n, width], which are those
    after the last norm, the input of the language modelling head.
    """
    last, states = every_state(model, tokens, attention_mask, cache, logits)
    return last, states[-1]


def every_state(
    model: PreTrainedModel, tokens: torch.Tensor, attention_mask: torch.Tensor, cache: Cache, logits: int = 1
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run ``forward``; return the states of the embeddings and after every block, the last after the last norm."""
    positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
    optional = {
        "position_ids": positions[:, -tokens.shape[1] :],
        "logits_to_keep": logits,
    }
    known = inspect.signature(model.forward).parameters
    name = cache_name(model)
    output = model(
        input_ids=tokens,
        attention_mask=attention_mask,
        use_cache=True,
        output_hidden_states=True,
        **{key: value for key, value in optional.items() if key in known},
        **({name: cache} if name else {}),
    )
    return output.logits[:, -logits:].float(), output.hidden_states


def cache_name(model: PreTrainedModel) -> str | None:
    """Return the name of the argument that is a model's cache: None where it keeps its states to itself."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in known), None)


def takes_cache(model: PreTrainedModel) -> bool:
    """Whether all that a model remembers is in a cache that it is given.

    State-space models of some families name theirs otherwise, and RecurrentGemma keeps states in its modules. Observed
    once per model, on one token.
    """
    if model not in _TAKES_CACHE:
        named = cache_name(model) == "past_key_values"
        _TAKES_CACHE[model] = named and _hands_cache_out(model)
    return _TAKES_CACHE[model]


_TAKES_CACHE: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _hands_cache_out(model: PreTrainedModel) -> bool:
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.no_grad():
        output = model(input_ids=token, use_cache=True)
    return output.get("past_key_values") is not None


def refuse_beyond_window(model: PreTrainedModel, tokens: int) -> None:
    """Raise RefusedError where a layer's cache has lost something by the time that it held so many ``tokens``.

    Tokens that were drafted can't be taken back from it then.
    """
    from transformers import DynamicCache

    layers: list[Any] = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    windows = (getattr(layer, "sliding_window", None) for layer in layers)
    window = min(filter(None, windows), default=tokens + 1)
    if tokens >= window:
        raise RefusedError(
            f"drafted tokens can't be taken back from a sliding window that is full, here of {window} tokens, and "
            f"prompt, new and drafted tokens are {tokens}"
        )


def refuse_failing_drafts(model: PreTrainedModel, decoding: Decoding) -> None:
    """Raise RefusedError where transformers fails to draft with the first blocks of a model.

    Tried once per model, on a few tokens: it refuses recurrent states, and looks for configurations and caches by name.
    """
    if model not in _DRAFTS:
        token = torch.ones((1, 1), dtype=torch.long, device=model.device)
        try:
            continuation(model, token, torch.ones_like(token), 3, decoding, seed=0)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            _DRAFTS[model] = " ".join(f"{type(error).__name__}: {error}".split())
        else:
            _DRAFTS[model] = None
    if _DRAFTS[model]:
        raise RefusedError(
            f"transformers can't draft with the first blocks of {type(model).__name__}: {_DRAFTS[model]}"
        )


_DRAFTS: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()


@contextlib.contextmanager
def _empty_layers_stay() -> Iterator[None]:
    """Inside, taking tokens back from a cache leaves layers alone that hold none.

    transformers gives a draft by the first blocks a cache for all blocks where the configuration lists their types, and
    fails to take tokens back from those that the draft never reached.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    originals: dict[Any, Any] = {kind: kind.crop for kind in (DynamicLayer, DynamicSlidingWindowLayer)}

    def unless_empty(original: Any) -> Any:
        return lambda layer, *arguments, **keywords: layer.is_initialized and original(layer, *arguments, **keywords)

    try:
        for kind, original in originals.items():
            kind.crop = unless_empty(original)
        yield
    finally:
        for kind, original in originals.items():
            kind.crop = original


def masks_padding(model: PreTrainedModel) -> bool:
    """Return whether what a model predicts stays the same behind padding on the left: RecurrentGemma reads it as text.

    Observed once per model, on a few tokens.
    """
    if model not in _MASKS:
        _MASKS[model] = _is_same_behind_padding(model)
    return _MASKS[model]


_MASKS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _is_same_behind_padding(model: PreTrainedModel) -> bool:
    alone = torch.arange(1, 5, device=model.device)[None]
    padded = torch.nn.functional.pad(alone, (3, 0), value=special_tokens(model)["pad_token_id"])
    mask = torch.nn.functional.pad(torch.ones_like(alone), (3, 0))
    known = inspect.signature(model.forward).parameters
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)} if "position_ids" in known else {}
    with torch.no_grad():
        expected = model(input_ids=alone, use_cache=False).logits[:, -1].float()
        behind = model(input_ids=padded, attention_mask=mask, use_cache=False, **positions).logits[:, -1].float()
    return bool((behind - expected).abs().max() <= 1e-2 * expected.abs().max())


def refuse_without_cache(model: PreTrainedModel) -> None:
    """Raise RefusedError for a search of the bench's own where a model goes on from no cache that it is given."""
    if not takes_cache(model):
        raise RefusedError(
            f"the search goes on from caches, and {type(model).__name__} takes none that holds all it read"
        )


@dataclass(frozen=True)
class Prompts:
    """Prompts as a strategy knows them: their mask int64 [batch, length], how long they grow, and their tokenizer,
    which is not known everywhere."""

    attention_mask: torch.Tensor
    new_tokens: int
    tokenizer: PreTrainedTokenizerBase | None = None


def generate(
    strategy: Any,
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    new_tokens: int,
    settings: Any,
    seed: int,
    reading: Reading | None = None,
    stops: Stops | None = None,
) -> torch.Tensor:
    """Return the continuations int64 [batch, <= new_tokens] of left-padded prompts; see ``continuation``.

    ``strategy`` is a module of this package, ``settings`` its Settings. Its ``parameters(model, settings, prompts)``
    are a ``Decoding``. ``stops`` has the strings that end a text, and their tokenizer. Prompts of different lengths go
    one by one where the model does not mask padding, each with draws of its own.
    """
    check(model, input_ids, attention_mask, new_tokens)
    tokenizer = stops.tokenizer if stops else None
    decoding: Decoding = strategy.parameters(model, settings, Prompts(attention_mask, new_tokens, tokenizer))
    if not decoding.one_by_one and (bool(attention_mask.all()) or masks_padding(model)):
        stopping = stops.criteria(input_ids.shape[1]) if stops else []
        return continuation(
            model,
            input_ids,
            attention_mask,
            new_tokens,
            decoding,
            seed=seed,
            reading=reading,
            stopping=stopping,
            tokenizer=tokenizer,
        )
    rows = []
    for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
        alone = ids[mask != 0][None]
        seen = torch.ones_like(alone)
        stopping = stops.criteria(alone.shape[1]) if stops else []
        decoding = strategy.parameters(model, settings, Prompts(seen, new_tokens, tokenizer))
        generated = continuation(
            model, alone, seen, new_tokens, decoding, seed=row_seed(seed, row), stopping=stopping, tokenizer=tokenizer
        )
        rows.append(generated[0])
    padding = special_tokens(model)["pad_token_id"]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def continuation(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    new_tokens: int,
    decoding: Decoding,
    *,
    seed: int,
    reading: Reading | None = None,
    stopping: Sequence[Callable[..., torch.Tensor]] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> torch.Tensor:
    """Continue a left-padded batch of prompts by at most ``new_tokens`` tokens, prompts not included.

    ``stopping`` are stopping criteria. ``reading`` saves reading the prompts again and is not changed. Sequences end at
    the model's end-of-sequence token and are padded after it. Random draws come from ``seed`` alone and leave the
    global generator as it was.

    Returns int64 [batch, <= new_tokens]. Raises ValueError for empty or too long prompts, before any work.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    check(model, input_ids, attention_mask, new_tokens)
    if decoding.shipped:
        return _as_shipped(model, input_ids, attention_mask, new_tokens, seed, stopping, tokenizer)
    special = special_tokens(model)
    neutral = {**NEUTRAL, **UNTRUNCATED} if decoding.options.get("do_sample") else NEUTRAL
    options: dict[str, Any] = {**neutral, **decoding.options, "max_new_tokens": new_tokens}
    search = decoding.search
    extra: dict[str, object] = {"custom_generate": search, **decoding.search_settings} if search else {}
    if reading is not None:
        extra["past_key_values"] = reading.copied_cache(options["num_beams"])
        if search and "prompt_states" in inspect.signature(search).parameters:
            extra["prompt_states"] = reading.states
    defaults = GenerationConfig(**special, **decoding.drafting)
    with (
        torch.no_grad(),
        seed_generators(seed, input_ids.device),
        hide_defaults(model, defaults),
        keep_depth(model),
        _empty_layers_stay(),
    ):
        sequences: torch.Tensor = model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=GenerationConfig(**options, **special),
            logits_processor=LogitsProcessorList(decoding.processors),
            stopping_criteria=StoppingCriteriaList(stopping),
            **extra,
        )
    return sequences[:, input_ids.shape[1] :]


def _as_shipped(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    new_tokens: int,
    seed: int,
    stopping: Sequence[Callable[..., torch.Tensor]],
    tokenizer: PreTrainedTokenizerBase | None,
) -> torch.Tensor:
    """Continue prompts as ``generate`` does by the model's own defaults; as ``continuation``."""
    from transformers import StoppingCriteriaList

    with torch.no_grad(), seed_generators(seed, input_ids.device):
        sequences: torch.Tensor = model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=new_tokens,
            pad_token_id=special_tokens(model)["pad_token_id"],
            return_dict_in_generate=False,
            stopping_criteria=StoppingCriteriaList(stopping),
            **({"tokenizer": tokenizer} if model.generation_config.stop_strings else {}),
        )
    return sequences[:, input_ids.shape[1] :]


class SpecialTokens(TypedDict):
    """Token ids as transformers' GenerationConfig names them."""

    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int


def special_tokens(model: PreTrainedModel) -> SpecialTokens:
    """Return the model's special tokens.

    A model without padding token is padded with its first end-of-sequence token: what follows an end is never read.
    """
    padding = _token(model, "pad_token_id")
    if padding is None:
        padding = next(iter(sorted(end_tokens(model))), 0)
    return {
        "bos_token_id": _token(model, "bos_token_id"),
        "eos_token_id": _token(model, "eos_token_id"),
        "pad_token_id": padding,
    }


def end_tokens(model: PreTrainedModel) -> set[int]:
    """Return the tokens that end a sequence of this model; empty where it has none."""
    eos = _token(model, "eos_token_id")
    if eos is None:
        return set()
    return set(eos) if isinstance(eos, list) else {eos}


def _token(model: PreTrainedModel, name: str) -> Any:
    """Return a special token from the generation's configuration, else from the model's."""
    values = (getattr(config, name, None) for config in (model.generation_config, model.config))
    return next((value for value in values if value is not None), None)


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Return ``tokens`` up to and with the first end-of-sequence token; what follows is padding."""
    for position, token in enumerate(tokens):
        if token in ends:
            return tokens[: position + 1]
    return tokens


def row_seed(seed: int, row: int) -> int:
    """Return the seed of a row that is generated alone; that of the batch for the first one."""
    # Multiples of 2^64 over the golden ratio lie far apart.
    return (seed + row * 0x9E3779B97F4A7C15) % 2**63


@contextlib.contextmanager
def seed_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` within the block and leave the global generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def hide_defaults(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Hide the model's own generation defaults: ``generate`` would fill what a call leaves open from them."""
    kept = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = kept


def check(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, new_tokens: int) -> None:
    """Raise ValueError unless these are left-padded prompts that fit the context with ``new_tokens`` more."""
    if new_tokens < 1:
        raise ValueError(f"new_tokens: {new_tokens}, at least 1 wanted")
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape or 0 in input_ids.shape:
        raise ValueError(
            f"prompts: input_ids {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)} "
            "must be the same [batch, length] and not empty"
        )
    lengths = attention_mask.sum(1)
    if not lengths.all():
        raise ValueError(f"prompts: row {int(lengths.argmin())} is empty")
    if (attention_mask.diff(dim=1) < 0).any():
        raise ValueError("prompts: padding must be on the left")
    check_context(model, int(lengths.max()), new_tokens, "prompts")


def check_context(model: PreTrainedModel, length: int, new_tokens: int, what: str) -> None:
    """Raise ValueError when ``length`` prompt tokens and ``new_tokens`` more exceed the model's context."""
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None and length + new_tokens > context:
        raise ValueError(f"{what}: {length} tokens and {new_tokens} new ones exceed the model's context of {context}")


def check_vocabulary(model: PreTrainedModel, what: str, tokens: int) -> None:
    """Raise ValueError when a setting asks for more tokens than the vocabulary has."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if tokens > vocabulary:
        raise ValueError(f"{what}: {tokens} is more than the vocabulary's {vocabulary} tokens")
