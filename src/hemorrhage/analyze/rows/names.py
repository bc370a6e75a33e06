"""What a metric's name says: ``kl_mean{position=17-32}[w128-...]`` is a KL, of a bucket of tokens, by a protocol."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

NAME = re.compile(r"(?P<metric>\w+)(?P<braces>(?:\{.*?\})*)(?:\[(?P<tag>.*)\])?", re.S)
SAID = re.compile(r"(\w+)=((?:(?!,\w+=).)*)", re.S)

BUCKETS = ("position", "frequency")
"""What tokens are grouped by."""


class Name(NamedTuple):
    """The parts of a metric's name. ``layer`` and ``head``: None of a whole model; ``bucket``: of which tokens, such as
    ``position=17-32``; ``part``: what else stands in braces, such as ``engine=vllm`` or ``category=billing``; empty
    where there is none."""

    metric: str
    tag: str = ""
    layer: int | None = None
    head: int | None = None
    bucket: str = ""
    part: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it is of a whole model and of all tokens."""
        return self.layer is None and self.head is None and not self.bucket


@functools.cache
def parse(name: str) -> Name:
    """Take a metric's name apart. A name of another form is its own metric."""
    match = NAME.fullmatch(name)
    if match is None:
        return Name(name)
    said = [pair for text in re.findall(r"\{(.*?)\}", match["braces"], re.S) for pair in SAID.findall(text)]
    numbers = {key: int(value) for key, value in said if key in ("layer", "head") and value.isdigit()}
    buckets = [f"{key}={value}" for key, value in said if key in BUCKETS]
    others = [f"{key}={value}" for key, value in said if key not in (*numbers, *BUCKETS)]
    return Name(
        metric=match["metric"],
        tag=match["tag"] or "",
        layer=numbers.get("layer"),
        head=numbers.get("head"),
        bucket=",".join(buckets),
        part=",".join(others),
    )
