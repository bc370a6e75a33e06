"""The protocol of a language metric, short enough for the metric's name."""

from __future__ import annotations

import functools
import json
import re

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
LETTERS = {"\n": "n", " ": "s"}
CONFIRMATION = "confirmation"
"""Stage whose numbers decide: measured on text and items that nothing before has read."""

NEEDED = ("window", "stride", "bos", "join", "predicted", "dtype")


def tag(protocol: str) -> str:
    """Shorten a protocol as the evaluate step states it: ``w128-s128-b0-jnn-n2032-f32``.

    In order: window, stride and whether it begins with BOS, what joins documents (n a newline, s a space, other
    characters in hexadecimal UTF-8, 0 nothing), predicted tokens, dtype, of a user's file, where the assistant's tokens
    alone are scored, ``-assistant``, and the stage where it is another than the evaluation; last, of what an engine
    computed, its name and release. Raises ValueError where one is missing.
    """
    settings = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', protocol))
    for key in NEEDED:
        if key not in settings:
            raise ValueError(f"the protocol {protocol!r} does not say {key}=")
    join = "".join(LETTERS.get(letter, letter.encode().hex()) for letter in json.loads(settings["join"])) or "0"
    dtype = DTYPES.get(settings["dtype"], settings["dtype"])
    window = f"w{settings['window']}-s{settings['stride']}-b{settings['bos']}"
    score = "-assistant" if settings.get("score") == "assistant" else ""
    stage = f"-{settings['stage']}" if "stage" in settings else ""
    engine = f"-{settings['engine']}" if "engine" in settings else ""
    return f"{window}-j{join}-n{settings['predicted']}-{dtype}{score}{stage}{engine}"


CONDITIONS = {"items": "i", "prefix": "p", "new_tokens": "t", "chat": "c", "shots": "s"}
"""What a decoding protocol says that texts depend on -> its letter in a tag."""


def decoding_tag(protocol: str) -> str:
    """Shorten a protocol of the decoding sweep: ``i24-t3-cnone-s0`` of 24 items, 3 new tokens, no chat and no shots."""
    stated = dict(re.findall(r"(\w+)=([^\s;]+)", protocol))
    return "-".join(f"{letter}{stated[key]}" for key, letter in CONDITIONS.items() if key in stated)


def add_protocol(metric: str, protocol: str) -> str:
    """Return a metric's whole name, such as ``perplexity[w128-s128-b0-jnn-n2032-f32]``."""
    return f"{metric}[{tag(protocol)}]"


def of_stage(metric: str, stage: str) -> str:
    """Return the name of a metric that was measured for another stage: ``kl_mean{stage=confirmation}``.

    It is no metric of the evaluation, whatever stands behind the name.
    """
    return re.sub(r"^\w+", rf"\g<0>{{stage={stage}}}", metric)


def without_stage(metric: str, stage: str) -> str | None:
    """Return what ``of_stage`` was given for this stage; None for another metric."""
    match = re.match(rf"(\w+){{stage={stage}}}(.*)", metric)
    return f"{match[1]}{match[2]}" if match else None


def of_category(metric: str, category: str) -> str:
    """Return the name of a metric over the texts of one category: ``kl_mean{category=billing}``."""
    return f"{metric}{{category={category}}}"


def category_of(metric: str) -> tuple[str, str] | None:
    """Return what ``of_category`` was given, the protocol left out; None for a metric of all texts."""
    match = re.fullmatch(r"(\w+){category=(.*)}", strip_protocol(metric))
    return (match[1], match[2]) if match else None


def of_engine(metric: str, engine: str, part: str = "") -> str:
    """Return the name of a metric in an engine, or of a part of it: ``kl_mean{engine=vllm,part=added}``.

    Without its protocol it is still not the metric's, so that nothing that looks for ``kl_mean`` finds an engine's.
    """
    return f"{metric}{{engine={engine}{f',part={part}' if part else ''}}}"


@functools.cache
def strip_protocol(metric: str) -> str:
    """Return a metric without its protocol: ``perplexity`` of ``perplexity[w128-...]``."""
    return metric.partition("[")[0]
