"""Loading a checkpoint folder, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hemorrhage.models import folder
from hemorrhage.models.checkpoint import load, load_tokenizer, size
from hemorrhage.models.formats.int8 import Int8Linear
from hemorrhage.models.formats.storage import replace
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.weights import Weights
from tests.families import FAMILIES, PALIGEMMA, build


def test_load_is_a_frozen_plain_model_of_the_asked_dtype(tiny: Path) -> None:
    model = load(tiny)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load(tiny, "bfloat16").dtype == torch.bfloat16
    stock = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    tokens = torch.arange(1, 60)[None]
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits.cpu(), stock(tokens).logits)


def test_tokenizer_is_the_one_of_tokenizer_json(tiny: Path) -> None:
    text = "Once upon a time, there was a little girl."
    assert load_tokenizer(tiny)(text).input_ids == AutoTokenizer.from_pretrained(tiny)(text).input_ids


def test_the_size_is_that_in_float32(base: Path) -> None:
    assert size(base) == 4 * sum(value.numel() for value in load(base).parameters())


@pytest.mark.parametrize("family", ["gemma", "gemma3", "paligemma"])
def test_in_16_bits_what_is_computed_and_not_stored_is_that_of_32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The scale of Gemma's embedding is such a number, also where Gemma is the text tower of a wrapper."""
    monkeypatch.setitem(FAMILIES, "paligemma", PALIGEMMA)
    stored = load(build(tmp_path / family, family), "stored")
    embedding: Any = stored.get_input_embeddings()
    assert embedding.weight.dtype == torch.bfloat16
    assert embedding.embed_scale == torch.tensor(80.0).sqrt()


def test_what_nothing_computes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(tmp_path / "gemma", "gemma")
    monkeypatch.setattr("transformers.PreTrainedModel.initialize_weights", lambda _: None)
    with pytest.raises(RefusedError, match=r"model\..* of a GemmaForCausalLM is computed, and not when"):
        load(folder, "bfloat16")


def test_codes_with_many_zeros_are_read_with_their_scale_block_by_block(tiny: Path, tmp_path: Path) -> None:
    """Such codes lie as a mask, which is made when the layer computes only where it is a plain weight."""
    model = load(tiny)
    name = "model.layers.1.mlp.up_proj"
    codes = torch.zeros(172, 64, dtype=torch.int8)
    codes[:, ::9] = torch.arange(-86, 86, dtype=torch.int8)[:, None]
    stored = {"weight": codes, "weight_scale": torch.full((172, 1), 0.01)}
    replace(model, name, Int8Linear(stored, {"weights": {"num_bits": 8}, "format": "int-quantized"}, None))
    (tmp_path / "v").mkdir()
    folder.save(model, torch.float32, tiny, tmp_path / "v", tiny)
    assert Weights(tmp_path / "v", tiny).masked(f"{name}.weight")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        for streamed in (False, True):
            read = load(tmp_path / "v", base=tiny, streamed=streamed)
            torch.testing.assert_close(read(tokens).logits, expected, rtol=1e-4, atol=1e-4)
