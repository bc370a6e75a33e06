"""llama.cpp's own numbers of a real model through its worker (``hemorrhage engine install llama_cpp``)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hemorrhage.engines import environment
from hemorrhage.engines.client import Session, WorkerDiedError
from hemorrhage.engines.environment import EngineError
from hemorrhage.engines.protocol import Logits
from hemorrhage.engines.registry import ENGINES
from hemorrhage.models.checkpoint import load
from hemorrhage.tools.export import export

pytestmark = pytest.mark.engines

LLAMA_CPP = ENGINES["llama_cpp"]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    if not environment.is_installed(LLAMA_CPP):
        environment.install(LLAMA_CPP)
    with Session(LLAMA_CPP) as opened:
        yield opened


@pytest.fixture(scope="module")
def dense(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export(tiny, file, "gguf")
    return file


def tokens(vocabulary: int, count: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(3, vocabulary, count).astype(np.int32)


def logits(session: Session, text: np.ndarray) -> np.ndarray:
    return np.concatenate([tile.values for tile in session.score(text) if isinstance(tile, Logits)])


def test_float32_logits_are_those_of_this_bench(session: Session, dense: Path, tiny: Path) -> None:
    model = session.load(dense, threads=1, context=128, dtype="float32")
    assert model.gives == "logits"
    text = tokens(model.vocabulary)
    with torch.inference_mode():
        expected = load(tiny)(torch.tensor(text[None, :-1]).long()).logits[0].numpy()
    assert np.abs(logits(session, text) - expected).max() < 1e-3 * np.abs(expected).max()


def test_tiles_do_not_change_what_is_computed(session: Session, dense: Path) -> None:
    model = session.load(dense, threads=1, context=1100)
    text = tokens(model.vocabulary, 1100)
    assert [tile.start for tile in session.score(text)] == [0, 512, 1024]
    short = logits(session, text[:300])
    assert np.abs(logits(session, text)[:299] - short).max() < 0.02 * np.abs(short).max()


def test_what_llama_cpp_cannot_compute_is_one_line(session: Session, dense: Path, tmp_path: Path) -> None:
    model = session.load(dense, threads=1, context=64)
    with pytest.raises(EngineError, match="do not fit the context"):
        logits(session, tokens(model.vocabulary, 1000))
    with pytest.raises(EngineError, match=f"0 to {model.vocabulary - 1}"):
        logits(session, np.array([1, model.vocabulary], np.int32))
    (tmp_path / "model.gguf").write_bytes(dense.read_bytes()[:5000])
    with pytest.raises(EngineError, match=r"model.gguf: llama.cpp can't load it"):
        session.load(tmp_path / "model.gguf", threads=1, context=64)


def test_speed_is_measured(session: Session, dense: Path) -> None:
    session.load(dense, threads=1, context=64)
    speed = session.speed(prefill=32, decode=8, warm_up=1, repetitions=3)
    assert len(speed.prefill) == len(speed.decode) == 3
    assert min(*speed.prefill, *speed.decode) > 0
    assert speed.peak_bytes > 10**7


def test_a_kill_in_the_middle_costs_one_text(session: Session, dense: Path) -> None:
    model = session.load(dense, threads=1, context=1100)
    text = tokens(model.vocabulary, 1100)
    expected = logits(session, text)
    reading = session.score(text)
    next(reading)
    assert session.process_id is not None
    os.kill(session.process_id, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"^llama.cpp b\d+: the worker was ended by SIGKILL"):
        list(reading)
    assert np.array_equal(logits(session, text), expected)
