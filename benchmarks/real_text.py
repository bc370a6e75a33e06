"""Damage on real text beside that on the default study's: two folders of reports in, tables for docs/STUDIES.md out.

    python -m benchmarks.real_text reports OTHER/reports --write docs/STUDIES.md

The first folder is of a run of the study ``real``, the second of another study, such as the default one; both hold
metrics.json and claims.json, which DVC and git keep. KL in nats per token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import marked


def metric(values: Mapping[str, Any], name: str) -> Any:
    """Return a metric of a variant, of all protocols together where it is by corpus; None where it was not measured."""
    found: Any = None
    for key, value in values.items():
        if key.partition("[")[0] == name:
            found = found | value if isinstance(value, dict) and found else value
    return found


def damage_table(real: Mapping[str, Any], other: Mapping[str, Any], pair: Sequence[str]) -> Iterator[str]:
    """Write the KL of each variant of the first study on all corpora of both, the least damaged first.

    ``pair``: a corpus of each; the last column says how many times the KL of the second is that of the first.
    """
    kls = [
        {name: metric(values, "kl_mean") or {} for name, values in study["variants"].items()} for study in (real, other)
    ]
    corpora = [list(dict.fromkeys(corpus for by in study.values() for corpus in by)) for study in kls]
    heads = [*corpora[0], *(f"{each}, other study" for each in corpora[1])]
    yield _line(["variant", "stored bits", *heads, " over ".join(pair)])
    yield _line(["---"] * (3 + len(heads)))
    measured = [name for name in kls[0] if name != "base" and pair[0] in kls[0][name]]
    for name in sorted(measured, key=lambda name: kls[0][name][pair[0]]):
        mine, theirs = kls[0][name], kls[1].get(name, {})
        bits, before = metric(real["variants"][name], "effective_bits"), theirs.get(pair[1])
        cells = [_number(mine.get(corpus)) for corpus in corpora[0]]
        cells += [_number(theirs.get(corpus)) for corpus in corpora[1]]
        yield _line([name, f"{bits:.2f}", *cells, f"{mine[pair[0]] / before:.2f}" if before else ""])


def verdict_table(real: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write the claims that the two studies judge differently, where both measured them."""
    before = {claim["key"]: claim["verdict"] for claim in other}
    yield _line(["claim", "on this text", "in the other study"])
    yield _line(["---"] * 3)
    for claim in real:
        verdicts = (claim["verdict"], before.get(claim["key"], "not measured"))
        if len(set(verdicts)) > 1 and "not measured" not in verdicts:
            yield _line([claim["claim"], *verdicts])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_text", description=__doc__)
    parser.add_argument("real", type=Path, help="reports of a run of the study `real`")
    parser.add_argument("other", type=Path, help="reports of the study to put beside it")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into a document")
    parser.add_argument("--pair", nargs=2, default=("wikitext2", "prose"), help="a corpus of each, to divide")
    arguments = parser.parse_args()
    metrics, claims = (
        [json.loads((folder / name).read_text(encoding="utf-8")) for folder in (arguments.real, arguments.other)]
        for name in ("metrics.json", "claims.json")
    )
    lines = ["", *damage_table(metrics[0], metrics[1], arguments.pair), ""]
    lines += [*verdict_table(*(each["claims"] for each in claims)), ""]
    print("\n".join(lines))
    if arguments.write:
        marked.write(arguments.write, "<!-- python -m benchmarks.real_text -->", "<!-- end of real text -->", lines)


if __name__ == "__main__":
    main()
