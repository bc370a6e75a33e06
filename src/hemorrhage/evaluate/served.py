"""Step ``served``: a model's damage in the engine that serves it, beside this bench's own reading of the same file.

    python -m hemorrhage.evaluate.served OUT --variant V (--engine JSON | --server JSON) --checkpoint DIR --base DIR
        --reference DIR --memory-gb GB

The checkpoint is exported as the engine reads it (hemorrhage.models.export), loaded there, and given the windows of the
reference. Of each token there are three predictions over the whole vocabulary: the base's in float32, that of our own
float32 reading of the checkpoint, and the engine's. What the weights cost is the divergence of the second from the
first; what the engine's kernels add is what the third has beyond that.

Finished windows are kept for a job after this one. A worker that dies is started again and asked for the same window,
until the session gives up. A checkpoint that can't be exported, or that the engine does not load, leaves a gap with the
reason, and no table.

A server over HTTP is asked for the log-probabilities of the same windows in the place of an engine; of its top k, KL is
an interval (hemorrhage.evaluate.served_endpoint). Its answers are kept, so that a job after a kill, or after the server
was lost, goes on with the next window. A server that is away, or that does not say what it was asked, is a gap.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from hemorrhage.engines.client import Loaded, Session, WorkerDiedError
from hemorrhage.engines.endpoint import EndpointSession
from hemorrhage.engines.endpoint_dialects import Vocabulary
from hemorrhage.engines.endpoint_http import EndpointError, LostError, read_key
from hemorrhage.engines.environment import EngineError, NotInstalledError, python_of
from hemorrhage.engines.protocol import Logits, Tile, Top
from hemorrhage.engines.registry import Engine
from hemorrhage.evaluate.__main__ import open_model, same_tokenizer
from hemorrhage.evaluate.language import (
    SCORED,
    batches,
    forward_passes,
    read_slice,
    resume_tables,
    stored_head,
    windows_per_batch,
)
from hemorrhage.evaluate.reference import CorpusFields, ReferenceManifest
from hemorrhage.evaluate.served_damage import compare_tile
from hemorrhage.evaluate.served_endpoint import Server, compare, range_of
from hemorrhage.evaluate.served_schema import ASKED, SERVED
from hemorrhage.models.blocks import blocks
from hemorrhage.models.blockwise import final_norm, is_streamed, traits
from hemorrhage.models.checkpoint import load_tokenizer
from hemorrhage.models.export import write
from hemorrhage.models.formats.config import BenchStorage
from hemorrhage.models.head import Head, head_of
from hemorrhage.models.reload import verify
from hemorrhage.models.stream import TensorFile
from hemorrhage.models.weights import CHECK
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import (
    failure,
    failure_recorded,
    read_manifest,
    resuming,
    whole,
    write_manifest,
    writing,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

BASE = "base"

LAYOUTS = {("gguf", True): "gguf", ("gguf", False): "gguf-dense", ("hf", True): "packed", ("hf", False): "dense"}
"""What an engine reads, and whether a checkpoint is quantized -> the format that it is exported in."""

FILES = {"gguf": "model.gguf", "hf": "model"}

WINDOWS, HIDDEN, ANSWERS = "windows.safetensors", "hidden.safetensors", "answers"

TOP = "top"
"""What an engine gives that gives the most probable tokens alone."""

LOADS = 3
"""Workers that may die while they load."""

PREFILL, DECODE, WARM_UP, REPETITIONS = 64, 16, 1, 5
"""Tokens of which the speed is measured, at once and one by one, and how often."""


class Speed(TypedDict, total=False):
    """``cost.json``: tokens per second of each repetition, and what they depend on; ``peak_bytes`` of the worker."""

    prefill: list[float]
    decode: list[float]
    peak_bytes: int
    peak_of: str
    batch: int
    length: int
    new_tokens: int
    threads: int


class NotServedError(ValueError):
    """The checkpoint can't be exported, or the engine does not load it."""


@dataclass(frozen=True)
class Reading:
    """The base's and our own predictions of the windows, as final hidden states and heads.

    ``reference``, ``folder``: of the states of the base, and of ours. ``model``: the checkpoint's, without the weights
    of its blocks.
    """

    model: PreTrainedModel
    head: Head
    base_head: Head
    reference: Path
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return self.head.weight.device

    def states(self, folder: Path, corpus: str, window: int) -> Tensor:
        """Return final hidden states of all positions but the last: float32 ``[window - 1, hidden]``."""
        return read_slice(folder / HIDDEN, corpus, slice(window, window + 1))[0, :-1].to(self.device)

    def logits(self, tile: Tile) -> Tensor:
        """Return an engine's logits float32 ``[t, vocabulary]``; of states, by our own last norm and head."""
        assert not isinstance(tile, Top), "refused when it was loaded"
        if isinstance(tile, Logits):
            return torch.tensor(tile.values, device=self.device)
        states = torch.tensor(tile.values, device=self.device)
        return self.head.logits((states if tile.final_norm else self.normed(states)).float())

    def normed(self, states: Tensor) -> Tensor:
        """Return states [t, hidden] that left the last block as they are behind the last norm."""
        tokens = torch.zeros(1, len(states), dtype=torch.long, device=self.device)
        with torch.inference_mode():
            return final_norm(self.model, (tokens,), [states[None]])[0][0]


@dataclass(frozen=True)
class Measured:
    """What an engine said of itself, and its speed; ``gaps``: part -> why it was left out."""

    facts: dict[str, str]
    speed: Speed
    gaps: dict[str, str]


def serve(
    out: Path,
    variant: str,
    engine: Engine,
    checkpoint: Path,
    base: Path,
    reference: Path,
    memory_gb: float = math.inf,
) -> None:
    """Write what a checkpoint does in an engine. Raises ValueError where it is broken or not made from ``base``."""
    reason = failure(checkpoint)
    if reason:
        raise ValueError(f"not made: {reason}")
    corpora = read_manifest(reference, ReferenceManifest)["corpora"]
    fields = {"variant": variant, "engine": engine.as_json(), "corpora": stated(corpora, engine)}
    same_tokenizer(checkpoint, base)
    with resuming(out) as unfinished, writing(out) as part:
        try:
            layout = LAYOUTS[engine.reads, is_quantized(checkpoint)]
            exported = _export(checkpoint, base, unfinished / FILES[engine.reads], layout)
            reading = _read(variant, checkpoint, base, reference, unfinished, memory_gb)
            with Session(engine, python=python_of(engine)) as session:
                measured = _measure(session, exported, reading, corpora, unfinished, part)
        except NotServedError as error:
            log.warning("%s: %s", engine.title, error)
            write_manifest(part, **fields, gaps={"all": str(error)})
            return
        (part / "cost.json").write_text(json.dumps(measured.speed, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        gaps = {"gaps": measured.gaps} if measured.gaps else {}
        write_manifest(part, **fields, facts=measured.facts, **gaps)


def ask(
    out: Path,
    variant: str,
    server: Server,
    checkpoint: Path,
    base: Path,
    reference: Path,
    memory_gb: float = math.inf,
) -> None:
    """Write what a server does that is said to have a checkpoint. Raises ValueError where that is broken."""
    if reason := failure(checkpoint):
        raise ValueError(f"not made: {reason}")
    corpora = read_manifest(reference, ReferenceManifest)["corpora"]
    fields = {"variant": variant, "engine": server.as_json(), "corpora": stated(corpora, server)}
    same_tokenizer(checkpoint, base)
    try:
        with resuming(out, LostError) as unfinished, writing(out) as part:
            unfinished.mkdir(parents=True, exist_ok=True)
            # First: it would use up the server's time.
            reading = _read(variant, checkpoint, base, reference, unfinished, memory_gb)
            vocabulary = Vocabulary.of(load_tokenizer(base).backend_tokenizer)
            with EndpointSession(server, vocabulary, unfinished / ANSWERS) as session:
                windows = load_file(reference / WINDOWS)
                facts = session.load(next(iter(windows.values()))[0].tolist()).facts
                tokens = pd.concat(_asked(session, reading, windows), ignore_index=True)
            ASKED.validate(tokens).to_parquet(part / "tokens.parquet", index=False)
            write_manifest(part, **fields, facts=facts)
    except EndpointError as error:
        line = " ".join(str(error).split())
        log.warning("%s", line)
        with writing(out) as part:
            write_manifest(part, **fields, gaps={"all": line})


def _asked(session: EndpointSession, reading: Reading, windows: Mapping[str, Tensor]) -> Iterator[pd.DataFrame]:
    """Yield the rows of each window, of the tokens that count."""
    named = [(corpus, number) for corpus, each in windows.items() for number in range(len(each))]
    counted = {corpus: _counted(reading.reference, corpus, each) for corpus, each in windows.items()}
    answers = session.ask_windows([windows[corpus][number].tolist() for corpus, number in named])
    largest = _largest_range(reading)
    for (corpus, number), answer in zip(named, answers, strict=True):
        base, ours = (reading.states(folder, corpus, number) for folder in (reading.reference, reading.folder))
        window = windows[corpus][number].tolist()
        table = compare(answer, (reading.base_head, base), (reading.head, ours), window, largest)
        yield _placed(table, corpus, number)[counted[corpus][number, 1:]]


def _largest_range(reading: Reading) -> float:
    """Return how far apart two logits of the checkpoint can be, as far as its last norm tells."""
    sample = torch.randn(reading.head.width, generator=torch.Generator().manual_seed(0)).to(reading.device)
    ones, normed = reading.normed(torch.stack([torch.ones_like(sample), sample])).float()
    return range_of(reading.head, ones, sample, normed)


def stated(corpora: dict[str, CorpusFields], engine: Engine | Server) -> dict[str, CorpusFields]:
    """Return the corpora with the engine and its release in their protocols."""
    return {
        corpus: {"sha256": fields["sha256"], "protocol": f"{fields['protocol']} engine={engine.tag}"}
        for corpus, fields in corpora.items()
    }


def is_quantized(checkpoint: Path) -> bool:
    """Tell whether a checkpoint's weights are codes, which an engine is to read as they are."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    storage = BenchStorage.of(config)
    codes = set(storage.layer_formats) - {"low_rank"}
    return bool(config.get("quantization_config") or codes or storage.model_format == "gguf_file")


def _export(checkpoint: Path, base: Path, out: Path, layout: str) -> Path:
    """Write the checkpoint as an engine reads it, where an earlier job has not. Raises NotServedError."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(checkpoint, out, layout, base)
        except ValueError as error:
            raise NotServedError(f"not exported: {error}") from error
    return out


def _read(variant: str, checkpoint: Path, base: Path, reference: Path, unfinished: Path, memory_gb: float) -> Reading:
    """Return our reading of the checkpoint; its states are those of an earlier job, where there are some."""
    base_head = stored_head(base)
    model = open_model(checkpoint, base, len(base_head), memory_gb)
    if variant != BASE:
        if not (checkpoint / CHECK).is_file():
            raise ValueError(f"{checkpoint}: no {CHECK}, so it can't be compared with what compress made")
        verify(model, checkpoint)
    states = unfinished / HIDDEN
    head = head_of(model).float()
    if not states.is_file():
        with whole(states) as part:
            _write_states(model, head.width, load_file(reference / WINDOWS), part)
    if not is_streamed(model):
        # The engine needs the memory. What the last norm is found by is observed with the weights.
        traits(model)
        blocks(model).to("meta")
    return Reading(model, head, base_head.to(head.weight.device), reference, unfinished)


def _write_states(model: PreTrainedModel, width: int, windows: dict[str, Tensor], file: Path) -> None:
    """Write final hidden states of all windows: float32 ``[windows, window, hidden]`` for each corpus."""
    shapes = {corpus: (*each.shape, width) for corpus, each in windows.items()}
    with torch.inference_mode(), TensorFile(file, shapes, torch.float32, {}) as written:
        for each in windows.values():
            parts = batches(len(each), windows_per_batch(each.shape[1]))
            for _, _, states in forward_passes(model, each, parts):
                written.write([states.cpu()])


def _measure(
    session: Session,
    exported: Path,
    reading: Reading,
    corpora: dict[str, CorpusFields],
    unfinished: Path,
    part: Path,
) -> Measured:
    """Score all windows in the engine into ``part``, then measure its speed."""
    windows = load_file(reading.reference / WINDOWS)
    # Some engines count the token that comes after the last.
    context = max(PREFILL + DECODE, *(each.shape[1] for each in windows.values())) + 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    loaded = _load(session, exported, threads, context)
    if loaded.gives == TOP:
        # From them a KL is a range.
        raise NotServedError("not compared: it gives the most probable tokens alone, and no KL of them is exact")
    if loaded.vocabulary != len(reading.base_head):
        raise NotServedError(
            f"not compared: it has a vocabulary of {loaded.vocabulary} tokens, and the base model of "
            f"{len(reading.base_head)}"
        )

    def damage(corpus: str, skip: int) -> Iterator[pd.DataFrame]:
        counted = _counted(reading.reference, corpus, windows[corpus])
        for window in range(skip, len(windows[corpus])):
            table = _score(session, reading, corpus, window, windows[corpus][window])
            yield table[counted[window, 1:]].reset_index(drop=True)

    tokens = pd.concat(resume_tables(corpora, damage, unfinished), ignore_index=True)
    SERVED.validate(tokens).to_parquet(part / "tokens.parquet", index=False)
    gaps: dict[str, str] = {}
    return Measured(dict(loaded.facts), _speed(session, threads, gaps), gaps)


def _load(session: Session, exported: Path, threads: int, context: int) -> Loaded:
    """Load the model. Raises NotServedError where the engine refuses it, or died of it several times."""
    for attempt in range(LOADS):
        try:
            return session.load(exported, threads=threads, context=context)
        except WorkerDiedError as error:
            log.warning("%s", error)
            if attempt == LOADS - 1:
                raise NotServedError(f"not loaded: {error}") from error
        except EngineError as error:
            raise NotServedError(f"not loaded: {error}") from error
    raise AssertionError("each attempt returns or raises")


def _counted(reference: Path, corpus: str, windows: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return which tokens of a corpus's windows are scored, bool ``[n, window]``."""
    first = read_manifest(reference, ReferenceManifest)["first_predicted"]
    counted = torch.ones(windows.shape, dtype=torch.bool)
    if (reference / SCORED).is_file():
        counted = load_file(reference / SCORED).get(corpus, counted)
    return (counted & (torch.arange(windows.shape[1]) >= first)).numpy()


def _score(session: Session, reading: Reading, corpus: str, window: int, tokens: Tensor) -> pd.DataFrame:
    """Return the rows of one window, of every position that is predicted."""
    base, ours = (reading.states(folder, corpus, window) for folder in (reading.reference, reading.folder))
    targets = tokens[1:].long().to(reading.device)
    while True:
        try:
            parts: list[dict[str, Tensor]] = []
            for tile in session.score(tokens.numpy()):
                engine = reading.logits(tile)
                part = slice(tile.start, tile.start + len(engine))
                pairs = (reading.base_head, base[part]), (reading.head, ours[part])
                parts += compare_tile(*pairs, engine, targets[part])
            break
        except WorkerDiedError as error:
            # The session starts another, and ends with another error after some.
            log.warning("%s; window %d of %s is asked for again", error, window, corpus)
    columns = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    table = pd.DataFrame(columns)
    if not np.isfinite(table[["nll", "kl", "kl_kernels"]].to_numpy()).all():
        raise ValueError(f"corpus {corpus}, window {window}: the engine's likelihoods are not finite")
    return _placed(table, corpus, window)


def _placed(table: pd.DataFrame, corpus: str, window: int) -> pd.DataFrame:
    """Return the rows of a window with where they are."""
    position = np.arange(1, len(table) + 1, dtype=np.int64)
    return pd.DataFrame({"corpus": corpus, "window": np.int64(window), "position": position}).join(table)


def _speed(session: Session, threads: int, gaps: dict[str, str]) -> Speed:
    """Measure the speed; where the engine can't, note a gap."""
    try:
        speed = session.speed(prefill=PREFILL, decode=DECODE, warm_up=WARM_UP, repetitions=REPETITIONS)
    except EngineError as error:
        gaps["speed"] = str(error)
        return {}
    return {
        "prefill": speed.prefill,
        "decode": speed.decode,
        "peak_bytes": speed.peak_bytes,
        "peak_of": "worker",
        "batch": 1,
        "length": PREFILL,
        "new_tokens": DECODE,
        "threads": threads,
    }


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.evaluate.served")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", required=True)
    serves = parser.add_mutually_exclusive_group(required=True)
    serves.add_argument("--engine", type=_engine, help="fields of engines.registry.Engine")
    serves.add_argument("--server", type=Server.model_validate_json, help="fields of evaluate.served_endpoint.Server")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--memory-gb", type=float, default=math.inf, help="above it a model is read block by block")
    arguments = parser.parse_args()
    step.start()
    engine: Engine | Server = arguments.engine or arguments.server
    try:
        if isinstance(engine, Server):
            read_key(engine.key_env)
        else:
            python_of(engine)
    except (NotInstalledError, EndpointError) as error:
        raise step.InputError(str(error)) from error
    corpora = stated(read_manifest(arguments.reference, ReferenceManifest)["corpora"], engine)
    fields = {"variant": arguments.variant, "engine": engine.as_json(), "corpora": corpora}
    given = arguments.checkpoint, arguments.base, arguments.reference, arguments.memory_gb
    with failure_recorded(arguments.out, **fields):
        if isinstance(engine, Server):
            ask(arguments.out, arguments.variant, engine, *given)
        else:
            serve(arguments.out, arguments.variant, engine, *given)


def _engine(text: str) -> Engine:
    return Engine(**json.loads(text))


if __name__ == "__main__":
    main()
