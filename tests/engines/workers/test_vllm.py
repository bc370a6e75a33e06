"""vLLM's own numbers through its worker (``hemorrhage engine install vllm``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hemorrhage.compress.__main__ import compress
from hemorrhage.engines import environment
from hemorrhage.engines.client import Session
from hemorrhage.engines.environment import EngineError
from hemorrhage.engines.protocol import Logits
from hemorrhage.engines.registry import ENGINES
from hemorrhage.models.checkpoint import load
from hemorrhage.tools.export import export

pytestmark = pytest.mark.engines

VLLM = ENGINES["vllm"]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    if not environment.is_installed(VLLM):
        environment.install(VLLM)
    with Session(VLLM) as opened:
        yield opened


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of 32, the smallest that its attention on a processor has, and one head of keys."""
    folder = tmp_path_factory.mktemp("dense") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=131, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    settings = {"bits": 4, "group_size": 32, "symmetric": True}
    compress(out / "v", "v", dense, None, None, [], {"sweep": "s", "method": "rtn", "settings": settings, "seed": 0})
    export(out / "v", out / "model", "packed", dense)
    return out / "model"


def tokens(vocabulary: int, count: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(3, vocabulary, count).astype(np.int32)


def logits(session: Session, text: np.ndarray) -> np.ndarray:
    return np.concatenate([tile.values for tile in session.score(text) if isinstance(tile, Logits)])


def test_float32_logits_are_those_of_this_bench(session: Session, dense: Path) -> None:
    model = session.load(dense, threads=1, context=128, dtype="float32")
    assert (model.gives, model.facts["dtype"]) == ("logits", "float32")
    text = tokens(model.vocabulary)
    with torch.inference_mode():
        expected = load(dense)(torch.tensor(text[None, :-1]).long()).logits[0].numpy()
    assert np.abs(logits(session, text) - expected).max() < 1e-3 * np.abs(expected).max()
    # A text of the whole context, and no cache of an earlier one.
    assert len(logits(session, tokens(model.vocabulary, 128))) == 127
    assert np.array_equal(logits(session, text[:40]), logits(session, text[:40]))


def test_packed_weights_are_computed_by_its_kernels(session: Session, packed: Path) -> None:
    model = session.load(packed, threads=1, context=128)
    assert model.facts["quantization"] == "compressed-tensors"
    text = tokens(model.vocabulary)
    theirs = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor(text[None, :-1]).long()).logits[0].numpy()
    error = np.sqrt(np.mean((logits(session, text) - expected) ** 2) / np.mean(expected**2))
    # The kernel computes in bfloat16.
    assert error < 0.05


def test_what_vllm_cannot_compute_is_one_line(session: Session, dense: Path, tiny: Path, tmp_path: Path) -> None:
    model = session.load(dense, threads=1, context=64)
    with pytest.raises(EngineError, match="do not fit the context"):
        logits(session, tokens(model.vocabulary, 1000))
    with pytest.raises(EngineError, match=f"0 to {model.vocabulary - 1}"):
        logits(session, np.array([1, model.vocabulary], np.int32))
    export(tiny, tmp_path / "narrow", "dense")
    with pytest.raises(EngineError, match="head"):
        session.load(tmp_path / "narrow", threads=1, context=64)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError):
        session.load(tmp_path, threads=1, context=64)
    assert session.load(dense, threads=1, context=64).vocabulary == model.vocabulary


def test_speed_is_measured(session: Session, dense: Path) -> None:
    session.load(dense, threads=1, context=64)
    speed = session.speed(prefill=32, decode=8, warm_up=1, repetitions=3)
    assert len(speed.prefill) == len(speed.decode) == 3
    assert min(*speed.prefill, *speed.decode) > 0
    assert speed.peak_bytes > 10**7
