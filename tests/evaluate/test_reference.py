"""What every evaluation reads of the base: windows, sizes of texts, protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.evaluate.diagnostics import collect
from hemorrhage.evaluate.reference import (
    cut_windows,
    first_predicted,
    protocol,
    reference,
    spread,
    text_sizes,
    token_bytes,
)
from hemorrhage.evaluate.schema import WINDOWS
from hemorrhage.runtime.artifact import read_manifest, write_manifest
from tests.tiny_model import train_tokenizer


def test_windows_are_spread_evenly_and_do_not_overlap() -> None:
    tokens = torch.arange(103, dtype=torch.int32)
    every = cut_windows(tokens, 10, "all", [])
    assert every.shape == (10, 10)
    assert torch.equal(every.flatten(), tokens[:100])
    some = cut_windows(tokens, 10, 5, [])
    assert some[:, 0].tolist() == [0, 20, 40, 60, 80]
    with_bos = cut_windows(tokens, 11, 5, [999])
    assert with_bos[:, 0].tolist() == [999] * 5
    assert with_bos[:, 1].tolist() == [0, 20, 40, 60, 80]
    with pytest.raises(ValueError, match="103 tokens make 10 windows of 10, not 11"):
        cut_windows(tokens, 10, 11, [])


def test_fresh_windows_are_none_of_those_of_other_references() -> None:
    tokens = torch.arange(103, dtype=torch.int32)
    assert cut_windows(tokens, 10, 3, [], [5, 2])[:, 0].tolist() == [10, 30, 70]
    assert cut_windows(tokens, 10, 99, [], [5, 2])[:, 0].tolist() == [10, 30, 70, 90], "as many as are left"


def test_windows_begin_with_all_that_the_tokenizer_puts_there_and_none_of_it_is_predicted(tokenizer: Any) -> None:
    windows = cut_windows(torch.arange(3, 103, dtype=torch.int32), 12, 5, [1, 2])
    assert windows[:, :2].tolist() == [[1, 2]] * 5
    assert windows[:, 2].tolist() == [3, 23, 43, 63, 83]
    assert (first_predicted([]), first_predicted([1]), first_predicted([1, 2])) == (1, 1, 2)
    sizes = text_sizes(windows, tokenizer, "prose", first_place=2)
    assert sizes["tokens"].tolist() == [10] * 5
    assert "bos=2" in (stated := protocol(12, 5, 10, [1, 2], ""))
    assert "predicted=50" in stated


def test_protocols_differ_with_everything_a_perplexity_depends_on() -> None:
    kinds = {
        protocol(256, 16, 300, [], "\n\n"),
        protocol(128, 16, 300, [], "\n\n"),
        protocol(256, 8, 300, [], "\n\n"),
        protocol(256, 16, 300, [1], "\n\n"),
        protocol(256, 16, 300, [], " "),
    }
    assert len(kinds) == 5


def test_windows_to_look_inside_are_spread_over_the_first_corpus() -> None:
    windows = torch.arange(10, dtype=torch.int32)[:, None]
    assert spread(windows, 4).flatten().tolist() == [0, 2, 5, 7]
    with pytest.raises(ValueError, match=r"diagnostics\.windows: 11 wanted, and evaluate\.windows leaves 10"):
        spread(windows, 11)


TEXT = "Grüße aus Köln — 東京 and 10 naïve cafés,\n\tall under one 🙂 roof. " * 12


def test_bytes_and_words_of_a_text_are_those_of_its_windows(tokenizer: Any) -> None:
    byte_level = train_tokenizer([TEXT])
    for backend, own in ((tokenizer, tokenizer.backend_tokenizer), (None, byte_level)):
        known = backend or type("Known", (), {"backend_tokenizer": byte_level})()
        ids = own.encode(TEXT, add_special_tokens=False).ids
        # The first token of each window is not predicted: here the beginning-of-sequence token.
        windows = cut_windows(torch.tensor(ids, dtype=torch.int32), 9, "all", [1])
        table = WINDOWS.validate(text_sizes(windows, known, "prose"))
        read = own.decode(windows[:, 1:].flatten().tolist())
        # sentencepiece puts a space in front of a text, which decoding takes away.
        lead = int(own.token_to_id("\N{LOWER ONE EIGHTH BLOCK}") is not None)
        cut = 3 * read.endswith("\ufffd")
        assert abs(table.bytes.sum() - lead - len(read.encode())) <= cut
        assert (table.tokens == 8).all()
        assert 0 <= table.words.sum() - len(read.split()) <= len(windows), "one more where a window cuts a word"
        assert token_bytes(known)[1] == 0


def test_a_word_that_the_first_token_begins_is_not_counted(tokenizer: Any) -> None:
    ids = tokenizer("there was a girl", add_special_tokens=False).input_ids
    (row,) = text_sizes(torch.tensor([ids]), tokenizer, "prose").itertuples()
    assert row.words == 3


def test_reference_holds_what_every_evaluation_reads(study: Path) -> None:
    facts = read_manifest(study / "reference")
    assert list(facts["corpora"]) == ["code", "prose"]
    assert facts["diagnostics"]["sha256"] == "sha of prose", "the first corpus is looked into"
    assert facts["diagnostics"]["protocol"] == collect.protocol(2, 24)
    assert load_file(study / "reference" / "diagnostics.safetensors")["tokens"].shape == (2, 24)
    counts = load_file(study / "reference" / "counts.safetensors")["code"]
    stream = load_file(study / "code" / "tokens.safetensors")["evaluation"]
    assert counts.tolist() == torch.bincount(stream, minlength=512).tolist()
    assert len(pd.read_parquet(study / "reference" / "windows.parquet")) == 12


@pytest.mark.parametrize(("tokens", "there"), [(0, 0), (40, 1)])
def test_a_text_that_is_too_short_is_named(tokens: int, there: int, study: Path, tmp_path: Path) -> None:
    save_file({"evaluation": torch.ones(tokens, dtype=torch.int32)}, tmp_path / "tokens.safetensors")
    write_manifest(tmp_path, corpus="poems", sha256="", join="")
    with pytest.raises(ValueError, match=f"corpus poems: {tokens} tokens make {there} windows of 32, not 6"):
        reference(
            tmp_path / "out",
            study / "base",
            [tmp_path],
            [],
            {"dtype": "float32", "window": 32, "windows": 6, "diagnostics": {"windows": 0, "window": 24}},
        )
    assert not (tmp_path / "out").exists()


def test_without_windows_to_look_inside_nothing_is_written(study: Path, tmp_path: Path) -> None:
    reference(
        tmp_path / "out",
        study / "base",
        [study / "prose"],
        [],
        {"dtype": "float32", "window": 16, "windows": 2, "diagnostics": {"windows": 0, "window": 24}},
    )
    assert read_manifest(tmp_path / "out")["diagnostics"] is None
    assert not (tmp_path / "out" / "diagnostics.safetensors").exists()
