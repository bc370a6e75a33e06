"""The tensors of a checkpoint against those of its architecture, from headers alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hemorrhage.models.sources.architecture import compare, configuration
from hemorrhage.models.sources.files import Tensor, contents, tensors
from hemorrhage.runtime.step import InputError
from tests.models.sources.folders import llama, settings, sharded, weights


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return llama(tiny, tmp_path / "model")


def stored(folder: Path) -> dict[str, Tensor]:
    return tensors(contents(folder).weights)


def test_a_checkpoint_of_its_architecture_has_nothing_to_leave_behind(folder: Path) -> None:
    found = compare(folder, stored(folder))
    assert (found.surplus, found.notes) == ([], [])
    sharded(folder)
    assert compare(folder, stored(folder)) == found


def test_the_first_that_is_missing_is_the_first_in_numbers(folder: Path) -> None:
    settings(folder / "config.json", num_hidden_layers=12)
    with pytest.raises(InputError, match=r"lacks model\.layers\.3\.input_layernorm\.weight and \d+ more tensors"):
        compare(folder, stored(folder))


def test_one_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    up = "model.layers.1.mlp.up_proj.weight"
    weights(folder, lambda state: {**state, up: torch.zeros(96, 80, dtype=torch.bfloat16)})
    with pytest.raises(InputError, match=r"as \[96, 80\], config\.json's architecture as \[104, 80\]$"):
        compare(folder, stored(folder))


def test_a_second_copy_and_a_computed_buffer_are_left_behind(folder: Path) -> None:
    head, buffer = "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"
    weights(
        folder,
        lambda state: {**state, head: state["model.embed_tokens.weight"].clone(), buffer: torch.ones(12)},
    )
    found = compare(folder, stored(folder))
    assert found.surplus == [head, buffer]
    assert [sentence.split()[0] for sentence in found.notes] == [head, "Left"]


def test_no_number_is_read_where_nothing_is_stored_twice(folder: Path) -> None:
    headers = stored(folder)
    (folder / "model.safetensors").unlink()
    assert compare(folder, headers).surplus == []


def test_transformers_tells_as_much_afterwards_as_before(folder: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    settings(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(InputError):
        compare(folder, stored(folder))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_configuration_in_another_encoding_is_read(folder: Path) -> None:
    file = folder / "config.json"
    file.write_bytes(file.read_text().encode("utf-8-sig"))
    assert configuration(folder).hidden_size == 80
    settings_line = '{"model_type": "nobody"}'
    file.write_text(settings_line)
    with pytest.raises(InputError, match="the model_type 'nobody' is unknown to transformers"):
        configuration(folder)
