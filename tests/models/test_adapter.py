"""Adapters that peft saves, through the step: on an odd-sized base in bfloat16, tied and untied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hemorrhage.compress.__main__ import compress
from hemorrhage.models import adapter
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.sources.published import ADAPTER, ADAPTER_WEIGHTS
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import failure, read_manifest
from hemorrhage.runtime.step import InputError
from tests.models.sources import folders

LAYERS = ["q_proj", "o_proj", "down_proj"]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    source = folders.llama(tiny, root / "llama", tie_word_embeddings=request.param)
    prepare({"source": "path", "path": str(source)}, root / "base")
    return root / "base"


def trained(base: Path, out: Path, **settings: Any) -> Any:
    """A peft model in float32 on ``base`` whose adapter is not zero, saved in ``out``."""
    torch.manual_seed(1)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=6, task_type="CAUSAL_LM", **{"target_modules": LAYERS, **settings})
    model: Any = get_peft_model(theirs, config)
    for value in model.parameters():
        if value.requires_grad:
            value.data += 0.05 * torch.randn(value.shape)
    model.save_pretrained(out, save_embedding_layers=False)
    return model.eval()


def judged(base: Path, files: Path, out: Path) -> Any:
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(files)}, "seed": 0}
    compress(out, "v", base, None, None, [], spec)
    assert failure(out) is None
    return read_manifest(out)


TOKENS = torch.randint(500, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"q_proj": 5}},
        {"use_dora": True},
        {"bias": "all"},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "norm"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=str,
)
def test_logits_are_those_of_peft(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = trained(base, tmp_path / "adapter", **settings)
    judged(base, tmp_path / "adapter", tmp_path / "v")
    ours = load(tmp_path / "v", base=base)
    with torch.inference_mode():
        expected, found = theirs(TOKENS).logits, ours(TOKENS).logits
    # What is outside of the blocks is stored in the base's type of 16 bits.
    rounded = "modules_to_save" in settings or "lm_head" in settings.get("target_modules", ()) or "bias" in settings
    assert (found - expected).abs().max() < (2e-2 if rounded else 1e-5) * expected.abs().max()


def test_the_manifest_says_what_the_adapter_is(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter")
    manifest = judged(base, tmp_path / "adapter", tmp_path / "v")
    assert manifest["storage"] == "LoRA adapter, rank 3, 9 layers"
    assert manifest["lineage"]["verdict"] == "same"
    assert manifest["types"] == {"float32": 18}
    assert manifest["engine"] == adapter.ENGINE
    on_disk = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS)
    of_base = Weights(base)
    layers = [name for name in of_base.names() if "_proj" in name]
    bits = sum(8.0 * of_base.tensor(name).nbytes for name in layers) + sum(8.0 * v.nbytes for v in on_disk.values())
    weights = sum(of_base.shape(name).numel() for name in layers if name.endswith(".weight"))
    assert manifest["layer_bits"] == pytest.approx(bits / weights, rel=1e-6)
    assert any(str(base) in note for note in manifest["notes"])
    # The base's weights are not stored a second time.
    assert (tmp_path / "v/model.safetensors").stat().st_size < 3 * (
        tmp_path / "adapter" / ADAPTER_WEIGHTS
    ).stat().st_size


def test_the_base_in_memory_and_on_disk_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    before = {name: value.clone() for name, value in Weights(base).items()}
    adapter.read(tmp_path / "adapter", base)
    assert all(torch.equal(value, before[name]) for name, value in Weights(base).items())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda t: {"base_model.model.model.layers.7.q.lora_A.weight": torch.ones(3, 80)},
            "adapts model.layers.7.q, which",
        ),
        (
            lambda t: {"base_model.model.model.embed_tokens.lora_A.weight": torch.ones(3, 80)},
            "an? Embedding; adapters of",
        ),
        (
            lambda t: {"base_model.model.lm_head.weight": torch.ones(3, 80)},
            r"has lm_head.weight as \[3, 80\], and the base",
        ),
        (
            lambda t: {"base_model.model.other.weight": torch.ones(3, 80)},
            "has other.weight, which the base does not have",
        ),
        (lambda t: {name: value[:-1] for name, value in t.items()}, "lora_A has rank 2|lora_B has the shape"),
        (lambda t: dict(list(t.items())[1:]), "lacks the tensor lora_"),
    ],
)
def test_what_does_not_fit_the_base_is_one_line(base: Path, tmp_path: Path, change: Any, line: str) -> None:
    trained(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / ADAPTER_WEIGHTS
    save_file(change(load_file(file)), file)
    with pytest.raises(InputError, match=line) as problem:
        adapter.read(tmp_path / "adapter", base)
    assert str(tmp_path / "adapter") in str(problem.value)


def test_pickled_adapters_and_settings_that_are_none_are_refused(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", target_modules=["q_proj"])
    settings = (tmp_path / "adapter" / ADAPTER).read_text()
    (tmp_path / "adapter" / ADAPTER).write_text("[1]")
    with pytest.raises(InputError, match=r"adapter_config\.json is not a JSON object"):
        adapter.read(tmp_path / "adapter", base)
    (tmp_path / "adapter" / ADAPTER).write_text(json.dumps(json.loads(settings) | {"use_qalora": True}))
    with pytest.raises(InputError, match="adapter: use_qalora is not read"):
        adapter.read(tmp_path / "adapter", base)
    (tmp_path / "adapter" / ADAPTER_WEIGHTS).rename(tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin is pickled, which is never read"):
        adapter.read(tmp_path / "adapter", base)
