"""The protocol of a language metric, short enough to stand in the metric's name."""

from __future__ import annotations

import json
import re

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
LETTERS = {"\n": "n", " ": "s"}
NEEDED = ("window", "stride", "bos", "join", "predicted", "dtype")


def tag(protocol: str) -> str:
    """``w128-s128-b0-jnn-n2032-f32`` of a protocol as the evaluate step states it.

    In order: window, stride and whether BOS stands at its start, what joins documents (n a newline, s a space, other
    characters in hexadecimal UTF-8, 0 nothing), predicted tokens, dtype. Raises ValueError where one is missing.
    """
    found = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', protocol))
    for key in NEEDED:
        if key not in found:
            raise ValueError(f"the protocol {protocol!r} does not say {key}=")
    join = "".join(LETTERS.get(letter, letter.encode().hex()) for letter in json.loads(found["join"])) or "0"
    dtype = DTYPES.get(found["dtype"], found["dtype"])
    return f"w{found['window']}-s{found['stride']}-b{found['bos']}-j{join}-n{found['predicted']}-{dtype}"


def add_protocol(metric: str, protocol: str) -> str:
    """A metric's whole name, such as ``perplexity[w128-s128-b0-jnn-n2032-f32]``."""
    return f"{metric}[{tag(protocol)}]"


def strip_protocol(metric: str) -> str:
    """A metric without its protocol: ``perplexity`` of ``perplexity[w128-...]``."""
    return metric.partition("[")[0]
