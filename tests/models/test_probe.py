"""What is tried on a model before any work: right of whole ones, and said of those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.models import blockwise
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.probe import LINEAR_LAYERS, Finding, attempt, probe_base, probe_tokens
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from tests.families import COMMON, FAMILIES, GPT2_LIKE, PALIGEMMA, SLIDING, TIED, WIDE, build, new_model
from tests.tiny_model import CONTEXT

Entries = dict[str, Any]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "mamba", "bamba", "llava"])
def test_every_check_of_a_whole_model_is_right(tmp_path: Path, family: str) -> None:
    findings, silent = probe_base(load(build(tmp_path / family, family), "bfloat16"))
    assert [(finding.part, finding.answer, finding.reason) for finding in findings] == [
        ("decoder blocks", "yes", ""),
        (LINEAR_LAYERS, "yes", ""),
        ("language-model head", "yes", ""),
        ("blockwise forward", "yes", ""),
    ]
    assert silent == []


def test_blocks_that_share_weights_are_found_and_the_model_still_goes_on(tmp_path: Path) -> None:
    findings, _ = probe_base(load(build(tmp_path / "zamba2", "zamba2"), "bfloat16"))
    refused = {finding.part: finding.reason for finding in findings if finding.answer == "no"}
    assert refused.keys() == {LINEAR_LAYERS}
    assert "share weights" in refused[LINEAR_LAYERS]


def test_a_forward_pass_block_by_block_that_is_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_block = blockwise.run_block
    monkeypatch.setattr(blockwise, "run_block", lambda *arguments: run_block(*arguments) * 1.01)
    folder = build(tmp_path / "llama", "llama")
    with pytest.raises(InputError, match=r"blockwise forward: block by block logits of up to .* differ by"):
        prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    assert not (tmp_path / "base").exists()


GEMMA3N: Entries = {
    **COMMON, **WIDE, **TIED, **SLIDING, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 512,
    "laurel_rank": 8, "num_kv_shared_layers": 2, "altup_num_inputs": 2, "activation_sparsity_pattern": None,
}  # fmt: skip

GEMMA4: Entries = {
    **COMMON, **WIDE, **TIED, **SLIDING, "hidden_size_per_layer_input": 0, "global_head_dim": 32,
    "model_type": "gemma4_text",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "entries", "line"),
    [
        ("gemma3n_text", GEMMA3N, "a Gemma3nTextDecoderLayer computes states of 4 dimensions"),
        (
            "gemma4_text",
            GEMMA4 | {"num_kv_shared_layers": 2},
            "blocks read what earlier ones leave in shared_kv_states",
        ),
        ("paligemma", PALIGEMMA, "a token's logits change with the token after it"),
        ("openai-gpt", GPT2_LIKE | {"n_positions": CONTEXT}, "a Block returns a list; its states, or a tuple"),
    ],
)
def test_what_is_not_a_pass_block_by_block_over_what_came_before_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    entries: Entries,
    line: str,
) -> None:
    monkeypatch.setitem(FAMILIES, name, entries)
    folder = build(tmp_path / "model", name)
    with pytest.raises(InputError, match=f"^blockwise forward: {line}"):
        prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    assert not (tmp_path / "base").exists()
    assert "linear layers" not in caplog.text


def test_blocks_that_leave_something_which_none_reads_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "gemma4_text", GEMMA4 | {"num_kv_shared_layers": 0})
    findings, _ = probe_base(load(build(tmp_path, "gemma4_text"), "bfloat16"))
    assert [finding.reason for finding in findings] == [""] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silent_blocks_are_flagged_in_the_manifest_and_its_note(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = build(tmp_path / "llama", "llama")
    state = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    for name, value in state.items():
        # Block 1 adds nothing, block 2 its biases.
        if name.startswith(("model.layers.1.", "model.layers.2.")) and name.rsplit(".", 2)[-2] in (
            "o_proj",
            "down_proj",
        ):
            value.zero_() if name.endswith("weight") or ".1." in name else None
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    manifest = read_manifest(tmp_path / "base")
    assert manifest["silent_blocks"] == [1, 2]
    assert "Blocks 1, 2 add the same to every token" in manifest["note"]
    assert [entry["answer"] for entry in manifest["probe"]] == ["yes"] * 4


def test_a_base_says_nothing_of_blocks_that_all_do_something(tmp_path: Path) -> None:
    prepare({"source": "path", "path": str(build(tmp_path / "gpt2", "gpt2"))}, tmp_path / "base")
    manifest = read_manifest(tmp_path / "base")
    assert manifest["silent_blocks"] == []
    assert "same to every token" not in manifest["note"]


def test_an_attempt_says_what_a_check_raises_and_what_it_depends_on() -> None:
    def refuses() -> None:
        raise RefusedError("the model\nhas none")

    def breaks() -> None:
        raise KeyError("layers")

    assert attempt("s", "p", lambda: None) == Finding("s", "p")
    assert attempt("s", "p", lambda: "on the weather") == Finding("s", "p", "depends", "on the weather")
    assert attempt("s", "p", refuses) == Finding("s", "p", "no", "the model has none")
    assert attempt("s", "p", breaks) == Finding("s", "p", "no", "KeyError: 'layers'")


def test_tokens_are_of_all_the_vocabulary() -> None:
    tokens = probe_tokens(new_model("llama"))
    assert (tokens.shape, int(tokens[0, 0]), int(tokens[0, -1])) == ((1, 16), 0, 511)
