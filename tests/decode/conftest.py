"""Fixtures of this folder's tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.runtime.artifact import write_manifest
from tests.decode.sweeps import STORY

TEXTS = ("Once upon a time", "The", "Lily and her mom went to the park. She saw a big, big, big")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load(tiny)


@pytest.fixture(scope="module")
def prompts(tiny: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(tiny)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.fixture(scope="module")
def prompt(tiny: Path) -> torch.Tensor:
    ids: torch.Tensor = load_tokenizer(tiny)("Once upon a time, there was", return_tensors="pt")["input_ids"]
    return ids


@pytest.fixture
def drawn_from(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The distributions that tokens were drawn from, in order."""
    seen: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def watched(probabilities: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(probabilities.clone())
        return multinomial(probabilities, **options)

    monkeypatch.setattr(torch, "multinomial", watched)
    return seen


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("decode")
    for name in ("base", "checkpoint"):
        shutil.copytree(tiny, root / name)
        write_manifest(root / name, variant=name)
    text, task = root / "text", root / "task"
    text.mkdir()
    task.mkdir()
    documents = [("evaluation", i, STORY * (i % 3 + 1)) for i in range(8)] + [("evaluation", 8, "Too short.")]
    documents += [("calibration", 9, STORY)]
    pd.DataFrame(documents, columns=["split", "document", "text"]).to_parquet(text / "documents.parquet")
    write_manifest(text, corpus="stories", sha256="a" * 64)
    items = [(i, f"The {'red ' * i}cats", [" is", " are"], 1) for i in range(6)] + [(6, "2 + 2 =", [" 4", " 5"], 0)]
    pd.DataFrame(items, columns=["item", "prompt", "choices", "answer"]).to_parquet(task / "items.parquet")
    write_manifest(task, task="agreement", sha256="b" * 64, chance=0.5)
    return {"base": root / "base", "checkpoint": root / "checkpoint", "open_ended": text, "closed_ended": task}
