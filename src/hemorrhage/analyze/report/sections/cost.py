"""Cost of running each variant."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.sections.engines import title
from hemorrhage.analyze.rows.tables import Estimate, Numbers

HERE = "this bench"

THEORETICAL = " theoretical: "
"""Between a protocol and the reason why what ran is not what an engine would run."""


@dataclass(frozen=True)
class Row:
    """The cost of a variant in an engine, or as this bench computes it; its numbers as text."""

    variant: str
    engine: str
    prefill: str
    decode: str
    peak: str
    cache: str
    formula: str
    protocol: str
    theoretical: str


def cost_rows(inputs: Inputs, numbers: Numbers) -> list[Row]:
    """Return a row per variant whose cost was measured here, and one for each engine that ran it.

    What an engine ran is not called theoretical: its own speed is in the next row. A speed without the kernels of the
    variant's format is none, and is left out.
    """
    rows = []
    for name in inputs.variants:
        here = _row(name, numbers)
        in_engines = [
            row
            for engine, outputs in inputs.served.items()
            if name in outputs and (row := _row(name, numbers, engine, title(outputs[name])))
        ]
        if here and in_engines:
            here = replace(here, theoretical="")
        rows += [*([here] if here else []), *in_engines]
    return rows


def _row(name: str, numbers: Numbers, engine: str = "", release: str = HERE) -> Row | None:
    """Return the row of a variant; None where nothing of it was measured."""

    def get(metric: str) -> Estimate | None:
        return numbers.get(name, of_engine(metric, engine) if engine else metric)

    prefill, decode = (get(f"{phase}_tokens_per_second") for phase in ("prefill", "decode"))
    peak, cache = get("peak_bytes"), get("kv_bytes")
    measured = prefill or decode or peak or cache
    if measured is None:
        return None
    protocol, _, theoretical = measured.protocol.partition(THEORETICAL)
    if theoretical:
        prefill = decode = None
    return Row(
        variant=name,
        engine=release,
        prefill=_speed(prefill),
        decode=_speed(decode),
        peak=_megabytes(peak, 0),
        cache=_megabytes(cache, 2),
        formula=_megabytes(get("kv_bytes_formula"), 2),
        protocol=protocol,
        theoretical=theoretical,
    )


def _speed(estimate: Estimate | None) -> str:
    return f"{estimate.value:,.0f} ({estimate.low:,.0f} to {estimate.high:,.0f})" if estimate else "–"


def _megabytes(estimate: Estimate | None, digits: int) -> str:
    return f"{estimate.value / 1e6:,.{digits}f}" if estimate else "–"
