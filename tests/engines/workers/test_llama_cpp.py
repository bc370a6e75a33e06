"""llama.cpp's own numbers of a real model through its worker (``hemorrhage engine install llama_cpp``)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.llama_cpp import quantized

from hemorrhage.compress.methods.weight_quantization.gguf_types import BITS, MIX_BITS
from hemorrhage.engines import environment
from hemorrhage.engines.client import Session, WorkerDiedError
from hemorrhage.engines.environment import EngineError
from hemorrhage.engines.protocol import Logits
from hemorrhage.engines.registry import ENGINES
from hemorrhage.models.architecture import text_entries
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.gguf_file import FILE, FILE_TYPES, float_entry, write
from hemorrhage.models.formats.storage import distinct
from hemorrhage.tools.export import export
from tests.models.formats.test_gguf_families_step import MODELS, base_of
from tests.models.formats.test_gguf_file import wide

__all__ = ["wide"]

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


@pytest.mark.parametrize(("kind", "mix"), [*((kind, False) for kind in BITS), *((mix, True) for mix in MIX_BITS)])
def test_every_type_and_mix_is_loaded_and_has_our_likelihood(
    kind: str, mix: bool, session: Session, wide: Path, tmp_path: Path
) -> None:
    """What this bench writes, the release of the table reads as it is meant; its kernels round inputs."""
    variant = quantized(wide, kind, tmp_path / "variant", mix)
    text = tokens(session.load(variant / FILE, threads=1, context=256).vocabulary, 256)
    targets = torch.tensor(text[1:]).long()[:, None]
    with torch.inference_mode():
        expected = load(variant, base=wide)(torch.tensor(text[None, :-1]).long()).logits[0]
    here, there = (
        -each.double().log_softmax(-1).gather(1, targets).mean()
        for each in (expected, torch.tensor(logits(session, text)))
    )
    assert there.item() == pytest.approx(here.item(), rel=5e-3)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_computed(name: str, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(name, tmp_path / "base", monkeypatch)
    model = load(base)
    # Gemma 2 caps the scores of attention in this one alone.
    model.set_attn_implementation("eager")
    state = distinct(model)
    single = {key: float_entry(tuple(value.shape), value.detach, torch.float32) for key, value in state.items()}
    write(tmp_path / FILE, text_entries(base), base, single, FILE_TYPES["f32"])
    text = tokens(session.load(tmp_path / FILE, threads=1, context=64, dtype="float32").vocabulary, 48)
    with torch.inference_mode():
        expected = model(torch.tensor(text[None, :-1]).long(), use_cache=False).logits[0].double().log_softmax(-1)
    given = torch.tensor(logits(session, text)).double().log_softmax(-1)
    assert (expected.exp() * (expected - given)).sum(-1).max() < 1e-6


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
