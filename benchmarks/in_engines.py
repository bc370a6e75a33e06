"""NLL and KL of a study's variants in the engines that serve them, beside this bench's: a table in docs/benchmarks.md.

    python -m benchmarks.in_engines [--windows 8] [--window 256] [--corpus prose] [--engines NAME ...]
        [--variants NAME ...] [--rows FILE] [--speed] [--page FILE]

Run in the folder of a study. Each variant is exported as an engine reads it, loaded there, given the same windows, and
deleted. This bench reads the checkpoint in float32; an engine computes as it does by itself, in bfloat16 where the
model has it. KL is that of the prediction to the base's in float32, over the whole vocabulary. What does not load has
its reason below the table, and so have variants of which the table of engines (hemorrhage.models.engine_table) says
something else than what happened. ``--rows`` is a file of results, a line each: what is in it is not computed again.
``--speed`` measures tokens per second and memory of each model that loads, too.
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
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from benchmarks import marked
from hemorrhage.engines.client import Session
from hemorrhage.engines.environment import EngineError
from hemorrhage.engines.protocol import Logits
from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.evaluate.served_damage import compare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.engine_table import LLAMA_CPP, TRANSFORMERS, VLLM, VLLM_CPU
from hemorrhage.models.engines import answer
from hemorrhage.models.export import exported_config, plain_problem, write
from hemorrhage.models.formats.config import BenchStorage
from hemorrhage.runtime.artifact import failure
from hemorrhage.study.plan import Plan

OURS = "this bench"

IN_TABLE = {
    "transformers": TRANSFORMERS,
    "llama_cpp": LLAMA_CPP,
    "vllm": {"cpu": VLLM_CPU, "cuda": VLLM}[ENGINES["vllm"].build],
}
"""Engine -> what the table of engines calls it."""

PREFILL, DECODE = 128, 32
"""Tokens of which speed is measured, at once and one by one."""

BEGIN, END = "<!-- in_engines: begin -->", "<!-- in_engines: end -->"


@dataclass(frozen=True)
class Row:
    """A variant in an engine: means over tokens, or the reason why there are none.

    ``kernels`` is the divergence of the engine's prediction from this bench's float32 reading of the same checkpoint;
    ``expected``: the table of engines says that it loads; ``prefill``, ``decode``: medians of tokens per second, and
    ``peak_bytes`` of the worker, 0 where they were not measured.
    """

    variant: str
    engine: str
    layout: str = ""
    nll: float = 0.0
    kl: float = 0.0
    kernels: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    expected: bool = True
    prefill: float = 0.0
    decode: float = 0.0
    peak_bytes: int = 0


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


def expected(engine: Engine, folder: Path, layout: str) -> bool:
    """Return whether the table of engines says that what is exported of a checkpoint loads."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if layout == "dense" and plain_problem(config):
        return False
    stored = config if layout == "packed" else exported_config(config, layout)
    return any(each.engine == IN_TABLE[engine.name] and not each.needs for each in answer(stored).loads)


def in_engine(
    session: Session,
    name: str,
    folder: Path,
    base: Path,
    tokens: Tensor,
    known: Sequence[Tensor],
    with_speed: bool = False,
) -> Row:
    """Return a variant in an engine; ``known``: the base's logits and this bench's."""
    began, engine = time.monotonic(), session.engine
    (layout,) = exports(engine, folder)
    speed: dict[str, Any] = {}
    is_expected = engine.reads == "hf" and expected(engine, folder, layout)
    scratch = Path(tempfile.mkdtemp())
    try:
        out = scratch / ("model.gguf" if engine.reads == "gguf" else "model")
        write(folder, out, layout, base)
        # A table of engines says nothing of whether a GGUF type has the grid of a checkpoint: the export does.
        is_expected = expected(engine, folder, layout)
        session.load(out, threads=torch.get_num_threads(), context=max(tokens.shape[1], PREFILL + DECODE) + 1)
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
        if with_speed:
            measured = session.speed(prefill=PREFILL, decode=DECODE, warm_up=1, repetitions=5)
            speed = {
                "prefill": median(measured.prefill),
                "decode": median(measured.decode),
                "peak_bytes": measured.peak_bytes,
            }
    except (EngineError, ValueError) as error:
        return Row(name, engine.name, reason=str(error).split("; --as")[0], expected=is_expected)
    finally:
        shutil.rmtree(scratch)
    nll, kl, kernels = (float(torch.cat(values).double().mean()) for values in means.values())
    return Row(name, engine.name, layout, nll, kl, kernels, time.monotonic() - began, expected=is_expected, **speed)


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


def otherwise(rows: Sequence[Row]) -> list[str]:
    """Return a line for each variant that loads where the table of engines says that it does not, or the reverse."""
    return [
        f"{row.variant}, {ENGINES[row.engine]}: it {'does not load' if row.expected else 'loads'}, and the table says "
        f"that it {'does' if row.expected else 'does not'}{f' ({row.reason})' if row.reason else ''}"
        for row in rows
        if row.engine != OURS and row.expected != (not row.reason)
    ]


def speeds(rows: Sequence[Row]) -> str:
    """Return the speeds of those rows that have them as Markdown."""
    lines = ["| variant | engine | prefill, tokens/s | decoding, tokens/s | peak memory, MB |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.variant} | {ENGINES[row.engine]} | {row.prefill:,.0f} | {row.decode:,.1f} | {megabytes:,.0f} |"
        for row in rows
        if row.prefill and (megabytes := row.peak_bytes / 1e6)
    ]
    return "\n".join(lines)


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
    parser.add_argument("--speed", action="store_true", help="measure it, too")
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
                    rows.append(in_engine(sessions[each], name, folder, base, tokens, known, arguments.speed))
                if arguments.rows is not None:
                    with arguments.rows.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(rows[-1])) + "\n")
    finally:
        for session in sessions.values():
            session.close()
    print(table(rows))
    if arguments.speed:
        print(speeds(rows))
    for line in otherwise(rows):
        print(line)
    if arguments.page is not None:
        marked.write(arguments.page, BEGIN, END, [table(rows)])


def read(file: Path) -> list[Row]:
    """Return the results of earlier runs."""
    return [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
