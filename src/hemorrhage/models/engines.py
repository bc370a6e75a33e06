"""Programs that can use a checkpoint as config.json says it is stored: a look-up in the table of engines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, cast

from hemorrhage.models.engine_table import (
    ABSENT,
    CACHE,
    CACHE_FLAGS,
    CPU_OR_GPU,
    EMBEDDINGS,
    FUSED,
    HEADS,
    LLAMA_CPP,
    METHODS,
    PLAIN,
    TABLE,
    TRANSFORMERS,
    VLLM,
    VLLM_CPU,
    Engine,
    Row,
    strategy,
)
from hemorrhage.models.formats.config import BenchStorage, QuantizationArgs, QuantizationConfig, QuantizationScheme

_INT4: QuantizationArgs = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
_INT8: QuantizationArgs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
_TOKENS: QuantizationArgs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def _one_group(scheme: QuantizationScheme) -> dict[str, object]:
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": scheme}}}


STORED: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "packed": _one_group({"weights": {**_INT4, "num_bits": 3}, "targets": ["Linear"], "format": "pack-quantized"}),
    "int8": _one_group({"weights": _INT8, "input_activations": _TOKENS, "format": "int-quantized"}),
    "floats": _one_group({"weights": {**_INT8, "type": "float"}, "format": "float-quantized"}),
    "codebook": {"quantization_config": {"quant_method": "bitsandbytes"}, "hemorrhage": {"forms": ["codebook"]}},
    "gguf_file": {"hemorrhage": {"form": "gguf_file"}},
    "rotated": {"hemorrhage": {"forms": ["rotated"]}},
    "affine": {"hemorrhage": {"forms": ["affine"]}},
    "low_rank": {"hemorrhage": {"forms": ["low_rank"]}},
    "int8_outliers": {"hemorrhage": {"forms": ["int8_outliers"]}},
    "sliced": {"hemorrhage": {"form": "sliced"}},
    "pruned_width": {"hemorrhage": {"narrow": {"layer": [1, 1]}}},
    "kv_cache": {"hemorrhage": {"kv_cache": {"bits": 4}}},
}
"""How a method's result can be stored -> entries of a config.json that say so. A test holds it to checkpoints."""

SAMPLES = ("model.layers.0.self_attn", "model.layers.0.mlp")
"""Names of modules that expressions for layers are tried on."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Entries of config.json that a mixture of experts has."""


_EMBEDDING = r"(?!re:|.*\.\d+\.)(\w+\.)+(wte|\w*embed\w*)"


@dataclass(frozen=True)
class Loads:
    """An engine loads a checkpoint. ``rounds_from``: the compute capability from which it rounds inputs."""

    engine: Engine
    device: str
    capability: float | None = None
    is_exact: bool = False
    rounds_from: float | None = None
    needs: str = ""

    def __str__(self) -> str:
        """Return ``vLLM 0.33 (CUDA, compute capability 7.5 or newer)``."""
        name = f"{self.engine} with {self.needs}" if self.needs else str(self.engine)
        device = self.device
        if self.capability is not None:
            device += f", compute capability {self.capability:.1f}{'' if self.is_exact else ' or newer'}"
        if self.rounds_from == inf:
            device += "; inputs are not rounded"
        elif self.rounds_from is not None:
            device += f"; inputs are rounded from {self.rounds_from:.1f}"
        return f"{name.strip()} ({device})"


@dataclass(frozen=True)
class Answer:
    """``loads``: what loads a checkpoint. ``refusals``: engine -> why it does not. ``obstacle``: why nothing does."""

    loads: tuple[Loads, ...] = ()
    refusals: Mapping[Engine, str] | None = None
    obstacle: str = ""

    @property
    def engines(self) -> str:
        """Engines, with versions and devices; empty where there are none."""
        return ", ".join(map(str, self.loads))

    @property
    def names(self) -> str:
        """Engines without versions; empty where there are none."""
        return ", ".join(
            dict.fromkeys(f"{each.engine.name} with {each.needs}".removesuffix(" with ") for each in self.loads)
        )

    @property
    def reason(self) -> str:
        """Why nothing loads it; empty where something does."""
        if self.loads:
            return ""
        return self.obstacle or "; ".join(f"{engine}: {why}" for engine, why in (self.refusals or {}).items())

    @property
    def sentence(self) -> str:
        """Say what loads it and that vLLM does not where it is so, or why nothing does."""
        if not self.loads:
            return f"Nothing loads it: {self.reason}."
        return " ".join(filter(None, (f"Loads in {self.engines}.", self.refusal)))

    @property
    def refusal(self) -> str:
        """Say that vLLM does not load what others do, and why; empty where it does, or nothing loads it."""
        refused = (self.refusals or {}).get(VLLM)
        return f"{VLLM} does not load it: {refused}." if refused and self.loads else ""


def answer(config: Mapping[str, Any]) -> Answer:
    """Look up which engines load a checkpoint with this config.json.

    Speed is another question: it takes kernels for the format.
    """
    storage = BenchStorage.of(config)
    quantization = cast("QuantizationConfig", config.get("quantization_config") or {})
    if storage.model_format == "gguf_file":
        return Answer((Loads(LLAMA_CPP, CPU_OR_GPU),))
    obstacle = _obstacle(storage)
    if obstacle:
        return Answer(obstacle=obstacle)
    method = quantization.get("quant_method", "compressed-tensors")
    if method != "compressed-tensors":
        return _of_method(method)
    given = _combine(_verdict(engine, config, quantization) for engine in PLAIN)
    option = _cache_option(storage)
    if not option:
        return given
    loads = tuple(replace(each, needs=option) for each in given.loads if each.engine == VLLM)
    return Answer(loads, {**(given.refusals or {}), TRANSFORMERS: "it rounds no cache per token and head"})


def engine(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the programs that load a checkpoint with this config.json, and, where there are none, why."""
    given = answer(config)
    return given.engines, given.reason


def library(config: Mapping[str, Any]) -> str:
    """Return the library that the Hub names for a checkpoint with this config.json."""
    return "gguf" if BenchStorage.of(config).model_format == "gguf_file" else "transformers"


def _obstacle(storage: BenchStorage) -> str:
    """Return why no engine loads what the bench stores in its own way; empty where it does not."""
    if storage.model_format is not None:
        return f"its storage format ({storage.model_format}) is another architecture"
    built_in = [name for name in storage.layer_formats if name != "codebook"]
    if built_in:
        return f"its weights are in a storage format of this bench ({', '.join(built_in)})"
    if storage.pruned_width:
        return f"{len(storage.pruned_width)} weights are narrower than config.json can say for a single layer"
    if storage.kv_cache and not _cache_option(storage):
        return "keys and values are rounded or evicted by this bench while it runs"
    return ""


def _cache_option(storage: BenchStorage) -> str:
    """Return the option of vLLM that rounds keys and values as a checkpoint does; empty where none does."""
    cache = storage.kv_cache or {}
    formats = {cache.get("key_format"), cache.get("value_format")}
    return CACHE_FLAGS.get(str(formats.pop()), "") if len(formats) == 1 else ""


def _of_method(method: str) -> Answer:
    readers = METHODS.get(method, ())
    if not readers:
        return Answer(obstacle=f"no engine of the table reads {method}")
    loads = tuple(Loads(each.engine, each.device, each.capability, needs=each.needs) for each in readers)
    refusals = {} if any(each.engine == VLLM for each in readers) else {VLLM: f"it reads no {method}"}
    return Answer(loads, refusals)


def _combine(verdicts: Iterable[Loads | tuple[Engine, str]]) -> Answer:
    loads: list[Loads] = []
    refusals: dict[Engine, str] = {}
    for verdict in verdicts:
        if isinstance(verdict, Loads):
            loads.append(verdict)
        else:
            refusals[verdict[0]] = verdict[1]
    return Answer(tuple(loads), refusals)


def _verdict(engine: Engine, config: Mapping[str, Any], quantization: QuantizationConfig) -> Loads | tuple[Engine, str]:
    """Return that ``engine`` loads the checkpoint, or it with the reason why it does not."""
    lacks = _lacks(engine, config)
    if lacks:
        return engine, lacks
    cache = quantization.get("kv_cache_scheme")
    if cache and not any(grid.has(cache) for grid in CACHE[engine]):
        return engine, f"it reads no cache of {in_words(cache)}"
    if _has_embeddings(quantization):
        return engine, EMBEDDINGS[engine]
    loads = Loads(engine, PLAIN[engine])
    groups = list((quantization.get("config_groups") or {}).values())
    if engine == TRANSFORMERS and sum(any(".experts." in each for each in _targets(scheme)) for scheme in groups) > 1:
        return engine, "it reads experts of one grid, and these have several"
    for scheme in groups:
        if not scheme.get("weights"):
            continue
        row = _row(engine, scheme, quantization, config)
        if isinstance(row, str):
            return engine, row
        loads = _both(loads, row)
    split = _split(quantization) if engine in (VLLM, VLLM_CPU) else ""
    return (engine, split) if split else loads


def _lacks(engine: Engine, config: Mapping[str, Any]) -> str:
    """Return why ``engine`` does not compute a model of this kind, however it is stored; empty where it does."""
    entry = config.get("text_config") or config
    if engine in (VLLM, VLLM_CPU) and entry.get("model_type") in ABSENT:
        return f"it has no {entry['model_type']}"
    heads, width = entry.get("num_attention_heads"), entry.get("hidden_size")
    size = entry.get("head_dim") or (width // heads if isinstance(heads, int) and isinstance(width, int) else None)
    if size and size not in HEADS.get(engine, (size,)):
        return f"its attention computes heads of {', '.join(map(str, HEADS[engine]))}, and these are of {size}"
    return ""


def _row(
    engine: Engine, scheme: QuantizationScheme, quantization: QuantizationConfig, config: Mapping[str, Any]
) -> Row | str:
    """Return the row of the table that a group of layers is in, or why there is none."""
    packing = scheme.get("format") or quantization.get("format") or "pack-quantized"
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    rows = [
        row
        for row in TABLE
        if row.engine == engine and row.weights.has(weights) and packing in row.packings and _takes(row, inputs)
    ]
    if not rows:
        return f"it has no kernel for {_scheme_in_words(weights, inputs)} stored as {packing}"
    if engine in (VLLM, VLLM_CPU) and weights.get("actorder") in ("group", "dynamic", True):
        return "it no longer reads columns in another order than their groups'"
    if has_experts(config) and _reaches_experts(scheme):
        rows = [row for row in rows if row.experts]
        if not rows:
            return f"it reads no experts of {_scheme_in_words(weights, inputs)}"
    dtype = config.get("dtype") or config.get("torch_dtype")
    if rows[0].dtype and dtype not in (None, rows[0].dtype):
        return f"it makes {rows[0].dtype} of {_scheme_in_words(weights, inputs)}, and the model is {dtype}"
    # transformers takes the inputs apart in groups.
    multiple = (inputs or {}).get("group_size") or 1 if engine == TRANSFORMERS else rows[0].multiple
    odd = [size for size in sizes(config) if size % multiple]
    if odd:
        return f"its kernel takes layers of multiples of {multiple}, and one has {odd[0]}"
    return rows[0]


def _takes(row: Row, inputs: QuantizationArgs | None) -> bool:
    return any(grid.has(inputs) for grid in row.inputs) if inputs else not row.inputs


def _both(loads: Loads, row: Row) -> Loads:
    """Return what it takes to load one more group of layers."""
    return replace(
        loads,
        capability=max(filter(None, (loads.capability, row.capability)), default=None),
        is_exact=loads.is_exact or row.is_exact,
        rounds_from=max(filter(None, (loads.rounds_from, row.rounds_from)), default=None),
    )


def has_experts(config: Mapping[str, Any]) -> bool:
    """Return whether config.json is that of a mixture of experts."""
    entries = [config, config.get("text_config") or {}]
    return any((entry.get(key) or 0) > 1 for entry in entries for key in EXPERTS)


def sizes(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the sizes of layers that config.json names."""
    entry = config.get("text_config") or config
    for key in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
        if isinstance(entry.get(key), int):
            yield entry[key]
    heads = entry.get("num_attention_heads")
    if isinstance(heads, int) and isinstance(entry.get("hidden_size"), int):
        head = entry.get("head_dim") or entry["hidden_size"] // heads
        yield from (heads * head, (entry.get("num_key_value_heads") or heads) * head)


def _reaches_experts(scheme: QuantizationScheme) -> bool:
    """Return whether the layers of a group are experts: those that it names, or all of a class."""
    # A name without a dot is a class, or the head's, which is no expert.
    return any("expert" in target or target[:1].isupper() for target in _targets(scheme))


def _has_embeddings(quantization: QuantizationConfig) -> bool:
    """Return whether a group names the embedding: a module that is in no block."""
    names = {name for scheme in (quantization.get("config_groups") or {}).values() for name in _targets(scheme)}
    return "Embedding" in names or any(re.fullmatch(_EMBEDDING, name) for name in names)


def _targets(scheme: QuantizationScheme) -> list[str]:
    return scheme.get("targets") or ["Linear"]


def _split(quantization: QuantizationConfig) -> str:
    """Say which layers that vLLM computes as one are rounded in different ways; empty where none are."""
    ways = _ways(quantization)
    parents = [target.rpartition(".")[0] for target in ways if not target.startswith("re:")]
    for parent in dict.fromkeys([*parents, *SAMPLES]):
        for together in FUSED:
            named = {_way(f"{parent}.{part}".removeprefix("."), ways) for part in together}
            if len(named) > 1:
                return f"it computes {', '.join(together)} as one, and those of {parent} are not rounded alike"
    experts: dict[str, set[str]] = {}
    for target, way in ways.items():
        block, is_expert, _ = target.partition(".experts.")
        if is_expert:
            experts.setdefault(block, set()).add(way)
    block = next((block for block, named in experts.items() if len(named) > 1), "")
    return f"it computes the experts of a block as one, and those of {block} are not rounded alike" if block else ""


def _ways(quantization: QuantizationConfig) -> dict[str, str]:
    """Return what a configuration names, a layer, an expression or a class -> its group, or that it is ignored."""
    groups = (quantization.get("config_groups") or {}).items()
    ways = {target: name for name, scheme in groups for target in _targets(scheme)}
    return {**ways, **dict.fromkeys(quantization.get("ignore") or (), "")}


def _way(layer: str, ways: Mapping[str, str]) -> str:
    """Return the group of a layer; empty where it is in none."""
    if layer in ways:
        return ways[layer]
    expressions = (way for name, way in ways.items() if name.startswith("re:") and re.match(name[3:], layer))
    return next(expressions, ways.get("Linear", ""))


def in_words(arguments: QuantizationArgs) -> str:
    """Return a rounding in words: ``4-bit integers, asymmetric, in groups of 64``."""
    kind = "integers" if arguments.get("type", "int") == "int" else "floats"
    named, size = strategy(arguments), arguments.get("group_size")
    parts = [f"{arguments.get('num_bits', 8)}-bit {kind}"]
    if not arguments.get("symmetric", True):
        parts.append("asymmetric")
    parts.append(f"in groups of {size}" if named in ("group", "tensor_group") else f"per {named}")
    return ", ".join(parts)


def _scheme_in_words(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:
    text = f"weights of {in_words(weights)}"
    if not inputs:
        return text
    return f"{text}, with {'dynamic' if inputs.get('dynamic') else 'static'} inputs of {in_words(inputs)}"
