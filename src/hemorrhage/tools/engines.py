"""docs/engines.md, the table of engines in words, from hemorrhage.models.engine_table.

    python -m hemorrhage.tools.engines

writes it between its markers. A test compares what is committed with what it would write.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path

from hemorrhage.models.engine_table import (
    ABSENT,
    ANY_STRATEGY,
    CACHE,
    HEADS,
    METHODS,
    PLAIN,
    SEMI_STRUCTURED,
    TABLE,
    VLLM,
    VLLM_CPU,
    Grid,
    Reader,
    Row,
)

FILE = Path("docs/engines.md")
BEGIN, END = "<!-- engines: begin (python -m hemorrhage.tools.engines) -->", "<!-- engines: end -->"

KINDS = {"int": "integers", "float": "floats"}


def tables() -> str:
    """Return the table of each engine, then those of caches and of other libraries' formats."""
    lines: list[str] = []
    for engine, device in PLAIN.items():
        lines += [f"## {engine}, {device}", "", "Weights of 16 or 32 bits, and:", ""]
        lines += ["| weights | inputs | stored as | compute capability | experts |", "|---|---|---|---|---|"]
        lines += [_row(row) for row in TABLE if row.engine == engine]
        lines += ["", f"Caches (`kv_cache_scheme`): {'; '.join(map(_grid, CACHE[engine]))}.", ""]
        if engine in HEADS:
            lines += [f"Heads: of {', '.join(map(str, HEADS[engine]))}.", ""]
        if engine in (VLLM, VLLM_CPU):
            lines += [f"Families of this bench that it lacks (`model_type`): {', '.join(ABSENT)}.", ""]
    lines += ["## Other formats", "", "| `quant_method` | loads in |", "|---|---|"]
    lines += [f"| `{method}` | {', '.join(map(_reader, readers))} |" for method, readers in METHODS.items()]
    lines += ["", f"2:4 sparsity is {SEMI_STRUCTURED}."]
    return "\n".join(lines)


def _row(row: Row) -> str:
    inputs = "; ".join(map(_grid, row.inputs)) or "as they are"
    if row.rounds_from == inf:
        inputs += " (the engine leaves them as they are)"
    elif row.rounds_from is not None:
        inputs += f" (rounded from {row.rounds_from:.1f})"
    weights = _grid(row.weights) + (f", sizes of multiples of {row.multiple}" if row.multiple > 1 else "")
    weights += f", models in {row.dtype}" if row.dtype else ""
    capability = "–" if row.capability is None else f"{row.capability:.1f}{'' if row.is_exact else ' or newer'}"
    packings = ", ".join(f"`{each}`" for each in row.packings)
    return f"| {weights} | {inputs} | {packings} | {capability} | {'yes' if row.experts else 'no'} |"


def _grid(grid: Grid) -> str:
    """Return ``2, 3 bit integers by group of 64``."""
    return " ".join(_words(grid))


def _words(grid: Grid) -> Iterator[str]:
    first, last = grid.bits[0], grid.bits[-1]
    is_range = len(grid.bits) > 2 and grid.bits == tuple(range(first, last + 1))
    yield f"{f'{first} to {last}' if is_range else ', '.join(map(str, grid.bits))} bit"
    yield KINDS[grid.type]
    yield "of any strategy" if grid.strategies == ANY_STRATEGY else f"by {' or '.join(grid.strategies)}"
    if grid.group_sizes is not None:
        yield f"of {', '.join(map(str, grid.group_sizes))}"
    if grid.block is not None:
        yield f"of {grid.block[0]} x {grid.block[1]}"
    if grid.symmetric is None:
        yield "(symmetric or not)"
    elif not grid.symmetric:
        yield "asymmetric"
    if grid.dynamic is not None:
        yield "dynamic" if grid.dynamic else "static"


def _reader(reader: Reader) -> str:
    name = f"{reader.engine} with {reader.needs}" if reader.needs else str(reader.engine)
    least = "" if reader.capability is None else f", compute capability {reader.capability:.1f} or newer"
    return f"{name.strip()} ({reader.device}{least})"


def page(text: str) -> str:
    """Return ``text`` with the tables between its markers. Raises ValueError where there are none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def main() -> None:
    """Write the file; see the module's docstring."""
    FILE.write_text(page(FILE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
