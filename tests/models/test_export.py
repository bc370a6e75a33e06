"""What a checkpoint becomes for other programs; tests/tools/test_export.py has them read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

from hemorrhage.models import export
from hemorrhage.models.checkpoint import load


def test_a_dense_folder_has_the_model(tiny: Path, tmp_path: Path) -> None:
    export.write(tiny, tmp_path / "dense", "dense")
    tokens = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "dense")(tokens).logits, load(tiny)(tokens).logits)


def test_a_gguf_file_appears_whole_or_not_at_all(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemorrhage.models.formats.gguf_file.write", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        export.write(tiny, tmp_path / "model.gguf", "gguf-dense")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    export.write(tiny, tmp_path / "model.gguf", "gguf-dense")
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    assert {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors} == {"F32"}


def test_what_config_json_says_of_an_export() -> None:
    settings = {"hidden_size": 8, "hemorrhage": {"forms": ["codebook"]}, "quantization_config": {"quant_method": "fp8"}}
    assert export.exported_config(settings, "dense") == {"hidden_size": 8}
    assert set(export.exported_config(settings, "packed")) == {"hidden_size", "quantization_config"}
    assert export.exported_config(settings, "gguf") == {"hemorrhage": {"form": "gguf_file"}}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"hemorrhage": {"form": "gguf_file"}}, None),
        ({"hemorrhage": {"form": "sliced"}}, "another architecture"),
        ({"hemorrhage": {"narrow": ["layer.weight"]}}, "narrower"),
        ({"hemorrhage": {"kv_cache": {"bits": 4}}}, "keys and values"),
        ({"quantization_config": {"config_groups": {"g": {"input_activations": {"num_bits": 8}}}}}, "inputs"),
    ],
)
def test_no_plain_checkpoint_computes_what_rounds_while_it_runs(
    settings: export.ModelConfig, reason: str | None
) -> None:
    problem = export.plain_problem(settings)
    assert problem is None if reason is None else reason in (problem or "")
