"""The variants of params/ship.yaml: each is made, and an engine of the table loads what is written."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from transformers import LlamaConfig, LlamaForCausalLM

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.engines import answer
from tests.calibration import calibrated
from tests.conftest import CARRIED, ROOT

*_, PROFILE = YAML(typ="safe").load_all((ROOT / "params/ship.yaml").read_text())


def points() -> list[tuple[str, str, dict[str, Any]]]:
    """Name, method and settings of each variant."""
    found = []
    for name, sweep in PROFILE["compress"].items():
        settings = {key: value for key, value in sweep.items() if key != "method"}
        lists = {key: value for key, value in settings.items() if isinstance(value, list)}
        for point in itertools.product(*lists.values()):
            chosen = {**settings, **dict(zip(lists, point, strict=True))}
            found.append(("-".join([name, *map(str, point)]), sweep["method"], chosen))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bfloat16 of one block whose widths 128 and 256 divide, as those of models that are served."""
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ship") / "base"
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(CARRIED / "plain" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def calibration(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(base, tmp_path_factory.mktemp("ship"))


def test_there_are_eight_to_twelve() -> None:
    assert 8 <= len(points()) <= 12


@pytest.mark.parametrize(("name", "method", "settings"), points(), ids=[name for name, *_ in points()])
def test_an_engine_loads_every_variant(
    tmp_path: Path, base: Path, calibration: Path, name: str, method: str, settings: dict[str, Any]
) -> None:
    out = tmp_path / name
    compress(
        out, name, base, None, calibration, [], {"sweep": method, "method": method, "settings": settings, "seed": 0}
    )
    assert "failure" not in json.loads((out / "manifest.json").read_text())
    given = answer(json.loads((out / "config.json").read_text()))
    assert given.loads, given.reason
    served = "llama.cpp" if name.startswith("gguf") else "vLLM"
    assert served in given.names
