"""NLL and KL of a study's variants in the engines that serve them, beside this bench's: a table in docs/benchmarks.md.

    python -m benchmarks.in_engines [--windows 8] [--window 256] [--corpus prose] [--engines NAME ...]
        [--variants NAME ...] [--rows FILE] [--page FILE]

Run in the folder of a study. Each variant is exported as an engine reads it, loaded there, given the same windows, and
deleted. This bench reads the checkpoint in float32; an engine computes as it does by itself, in bfloat16 where the
model has it. KL is that of the prediction to the base's in float32, over the whole vocabulary. What does not load has
its reason below the table. ``--rows`` is a file of results, a line each: what is in it is not computed again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from hemorrhage.engines.client import Session
from hemorrhage.engines.environment import EngineError
from hemorrhage.engines.protocol import Logits
from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.evaluate.served_damage import compare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.export import write
from hemorrhage.models.formats.config import BenchStorage
from hemorrhage.runtime.artifact import failure
from hemorrhage.study.plan import Plan

OURS = "this bench"

BEGIN, END = "<!-- in_engines: begin -->", "<!-- in_engines: end -->"


@dataclass(frozen=True)
class Row:
    """A variant in an engine: means over tokens, or the reason why there are none.

    ``kernels`` is the divergence of the engine's prediction from this bench's float32 reading of the same checkpoint.
    """

    variant: str
    engine: str
    layout: str = ""
    nll: float = 0.0
    kl: float = 0.0
    kernels: float = 0.0
    seconds: float = 0.0
    reason: str = ""


@torch.inference_mode()
def logits_of(folder: Path, base: Path, tokens: Tensor) -> Tensor:
    """Return this bench's logits of ``tokens`` [windows, length]: float32 [windows, length - 1, vocabulary]."""
    model: Any = load(folder, base=base)
    return torch.stack([model(window[None, :-1]).logits[0].float() for window in tokens])


def exports(engine: Engine, folder: Path) -> Iterator[str]:
    """Yield the formats that a checkpoint may be exported in for an engine, the smallest first."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    form = BenchStorage.of(config).model_format
    if engine.reads == "gguf":
        yield from ("gguf",) if form == "gguf_file" or "quantization_config" in config else ("gguf-dense",)
    elif form is None and "quantization_config" in config:
        yield "packed"
    else:
        yield "dense"


def in_engine(session: Session, name: str, folder: Path, base: Path, tokens: Tensor, known: Sequence[Tensor]) -> Row:
    """Return a variant in an engine; ``known``: the base's logits and this bench's."""
    began, engine = time.monotonic(), session.engine
    (layout,) = exports(engine, folder)
    scratch = Path(tempfile.mkdtemp())
    try:
        out = scratch / ("model.gguf" if engine.reads == "gguf" else "model")
        write(folder, out, layout, base)
        session.load(out, threads=torch.get_num_threads(), context=tokens.shape[1])
        means: dict[str, list[Tensor]] = {"nll": [], "kl": [], "kl_kernels": []}
        for window, text in enumerate(tokens):
            for tile in session.score(text.numpy().astype(np.int32)):
                if not isinstance(tile, Logits):
                    raise EngineError(f"it gives no logits but {type(tile).__name__}")
                part = slice(tile.start, tile.start + len(tile.values))
                of_base, weights = (logits[window, part] for logits in known)
                targets = text[part.start + 1 : part.stop + 1]
                columns = compare(of_base, weights, torch.tensor(tile.values), targets)
                for column, values in means.items():
                    values.append(columns[column])
    except (EngineError, ValueError) as error:
        return Row(name, engine.name, reason=str(error).split("; --as")[0])
    finally:
        shutil.rmtree(scratch)
    nll, kl, kernels = (float(torch.cat(values).double().mean()) for values in means.values())
    return Row(name, engine.name, layout, nll, kl, kernels, time.monotonic() - began)


def ours(name: str, tokens: Tensor, known: Sequence[Tensor]) -> Row:
    """Return a variant in this bench."""
    parts = [
        compare(of_base, weights, weights, text[1:]) for of_base, weights, text in zip(*known, tokens, strict=True)
    ]
    nll, kl = (float(torch.cat([part[column] for part in parts]).double().mean()) for column in ("nll", "kl"))
    return Row(name, OURS, "float32", nll, kl)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown: a line for each variant, then what was not computed and why."""
    engines = list(dict.fromkeys(row.engine for row in rows))
    by_name = {(row.variant, row.engine): row for row in rows}
    heads = [f"{OURS}: NLL | KL" if name == OURS else f"{ENGINES[name]}: NLL | KL | kernels" for name in engines]
    lines = [f"| variant | export | {' | '.join(heads)} |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for variant in dict.fromkeys(row.variant for row in rows):
        made = [by_name.get((variant, engine)) for engine in engines]
        layouts = dict.fromkeys(row.layout for row in made if row is not None and row.engine != OURS and row.layout)
        cells = [_cell(by_name.get((variant, engine)), engine) for engine in engines]
        lines.append(f"| {variant} | {', '.join(layouts) or '–'} | {' | '.join(cells)} |")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            engine = ENGINES[row.engine]
            reasons.setdefault(f"{engine}: {row.reason.removeprefix(f'{engine}: ')}", []).append(row.variant)
    lines += ["", *(f"- {', '.join(names)}, {reason}" for reason, names in reasons.items())]
    return "\n".join(lines).rstrip()


def _cell(row: Row | None, engine: str) -> str:
    """Return the numbers of a row: dashes where there is a reason, nothing where it was not computed."""
    numbers = 2 if engine == OURS else 3
    if row is None or not row.layout:
        return " | ".join(["" if row is None else "–"] * numbers)
    return " | ".join(f"{value:.4f}" for value in (row.nll, row.kl, row.kernels)[:numbers])


def main() -> None:
    """Print the table, and put it into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_engines", description=__doc__)
    parser.add_argument("--window", type=int, default=256, metavar="TOKENS")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--corpus", default="prose")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--variants", nargs="*", metavar="NAME", help="these alone; none: the rows that are there")
    parser.add_argument("--rows", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE", help="where the table goes, between its marks")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    plan = Plan.read()
    base = Path(plan.checkpoint("base")).parent
    text = Path(plan.manifest("texts", arguments.corpus)).parent
    evaluated = load_file(text / "tokens.safetensors")["evaluation"].long()[: arguments.window * arguments.windows]
    tokens = evaluated.view(arguments.windows, arguments.window)
    rows = [] if arguments.rows is None or not arguments.rows.is_file() else read(arguments.rows)
    done = {(row.variant, row.engine) for row in rows}
    wanted = ["base", *plan.variants] if arguments.variants is None else arguments.variants
    sessions: dict[str, Session] = {}
    of_base: Tensor | None = None
    try:
        for name in tqdm(wanted, mininterval=5, leave=False):
            missing = [each for each in (OURS, *arguments.engines) if (name, each) not in done]
            folder = Path(plan.checkpoint(name)).parent
            if not missing or not folder.is_dir() or (name != "base" and failure(folder)):
                continue
            of_base = logits_of(base, base, tokens) if of_base is None else of_base
            known = (of_base, of_base if name == "base" else logits_of(folder, base, tokens))
            for each in missing:
                if each == OURS:
                    rows.append(ours(name, tokens, known))
                else:
                    sessions[each] = sessions.get(each) or Session(ENGINES[each])
                    rows.append(in_engine(sessions[each], name, folder, base, tokens, known))
                if arguments.rows is not None:
                    with arguments.rows.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(rows[-1])) + "\n")
    finally:
        for session in sessions.values():
            session.close()
    print(table(rows))
    if arguments.page is not None:
        page = arguments.page.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        after = rest.partition(END)[2]
        arguments.page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


def read(file: Path) -> list[Row]:
    """Return the results of earlier runs."""
    return [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
