"""Cost of running each variant."""

from __future__ import annotations

from dataclasses import dataclass

from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.rows.tables import Estimate, Numbers

THEORETICAL = " theoretical: "
"""Between a protocol and the reason why what ran is not what an engine would run."""


@dataclass(frozen=True)
class Row:
    """The cost of a variant, its numbers as text."""

    variant: str
    prefill: str
    decode: str
    peak: str
    cache: str
    formula: str
    protocol: str
    theoretical: str


def cost_rows(inputs: Inputs, numbers: Numbers) -> list[Row]:
    """Return a row per variant whose speed was measured."""
    rows = []
    for name in inputs.variants:
        prefill, decode = (numbers.get(name, f"{phase}_tokens_per_second") for phase in ("prefill", "decode"))
        speed = prefill or decode
        if speed is None:
            continue
        protocol, _, theoretical = speed.protocol.partition(THEORETICAL)
        rows.append(
            Row(
                variant=name,
                prefill=_speed(prefill),
                decode=_speed(decode),
                peak=_megabytes(numbers.get(name, "peak_bytes"), 0),
                cache=_megabytes(numbers.get(name, "kv_bytes"), 2),
                formula=_megabytes(numbers.get(name, "kv_bytes_formula"), 2),
                protocol=protocol,
                theoretical=theoretical,
            )
        )
    return rows


def _speed(estimate: Estimate | None) -> str:
    return f"{estimate.value:,.0f} ({estimate.low:,.0f} to {estimate.high:,.0f})" if estimate else "–"


def _megabytes(estimate: Estimate | None, digits: int) -> str:
    return f"{estimate.value / 1e6:,.{digits}f}" if estimate else "–"
