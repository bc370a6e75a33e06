"""transformers through its worker, in this environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hemorrhage.engines.client import Session
from hemorrhage.engines.environment import EngineError
from hemorrhage.engines.protocol import Logits
from hemorrhage.engines.registry import ENGINES
from hemorrhage.models.checkpoint import load


def test_its_logits_are_those_of_the_library(tiny: Path, tmp_path: Path) -> None:
    text = np.random.default_rng(0).integers(3, 512, 60).astype(np.int32)
    with torch.inference_mode():
        expected = load(tiny)(torch.tensor(text[None, :-1]).long()).logits[0].numpy()
    with Session(ENGINES["transformers"]) as session:
        with pytest.raises(EngineError, match="no folder of Hugging Face"):
            session.load(tmp_path, threads=1, context=64)
        model = session.load(tiny, threads=1, context=64)
        assert (model.vocabulary, model.gives) == (512, "logits")
        assert model.facts["dtype"] == "float32"
        tiles = [tile for tile in session.score(text) if isinstance(tile, Logits)]
        assert np.allclose(np.concatenate([tile.values for tile in tiles]), expected, atol=1e-5)
        with pytest.raises(EngineError, match="79 tokens do not fit the context of 64"):
            list(session.score(np.resize(text, 80)))
        speed = session.speed(prefill=32, decode=4, warm_up=0, repetitions=2)
        assert len(speed.prefill) == len(speed.decode) == 2
        assert all(each > 0 for each in [*speed.prefill, *speed.decode])
