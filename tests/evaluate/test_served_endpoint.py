"""A server over HTTP through the served step: what is exact, what is an interval, and what is a gap."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from hemorrhage.engines.endpoint_dialects import Vocabulary
from hemorrhage.evaluate import served
from hemorrhage.evaluate.served_endpoint import Server, compare, range_of
from hemorrhage.evaluate.served_schema import ASKED
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.head import Head
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from tests.engines.lying_server import Lying, Network, serving

KEY = "a-key-that-nobody-shall-see"


@pytest.fixture
def answering(study: Path) -> Lying:
    """A server that has the checkpoint, which a test gives its faults."""
    pieces = Vocabulary.of(load_tokenizer(study / "base").backend_tokenizer).pieces
    return Lying(Network(load(study / "checkpoint")), pieces)


def run(study: Path, out: Path, url: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    """The step's command line."""
    fields = {"openai": url, "model": "tiny", "name": "mine", "attempts": 1, "timeout": 60.0, **settings}
    server = Server.model_validate(fields).model_dump_json()
    arguments = [out, "--variant", "v", "--checkpoint", study / "checkpoint", "--base", study / "base"]
    arguments += ["--reference", study / "reference", "--server", server]
    monkeypatch.setattr(sys, "argv", ["step", *map(str, arguments)])
    served.main()
    return out


@pytest.fixture
def truth(study: Path) -> dict[str, torch.Tensor]:
    """Of each corpus the divergence of the checkpoint from the base, and its own likelihoods, by their definition."""
    windows = load_file(study / "reference" / "windows.safetensors")["prose"].long()
    with torch.inference_mode():
        p, q = (
            torch.log_softmax(load(study / folder)(windows).logits[:, :-1].double(), -1)
            for folder in ("base", "checkpoint")
        )
    return {
        "kl": (p.exp() * (p - q)).sum(-1).flatten(),
        "nll": -q.gather(-1, windows[:, 1:, None]).flatten(),
        "same": (p.argmax(-1) == q.argmax(-1)).flatten(),
    }


def test_what_a_server_has_lies_between_the_ends_and_its_likelihoods_are_exact(
    study: Path,
    answering: Lying,
    truth: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answering.faults, answering.key = frozenset({"wants-key"}), KEY
    monkeypatch.setenv("KEY_OF_THE_TEST", KEY)
    caplog.set_level(logging.DEBUG)
    with serving(answering) as url:
        out = run(study, tmp_path / "out", url, monkeypatch, key_env="KEY_OF_THE_TEST")
    manifest = read_manifest(out)
    assert "failure" not in manifest, manifest["failure"]
    assert "gaps" not in manifest, manifest["gaps"]
    assert manifest["engine"] == {"name": "mine", "title": f"tiny at {url.removeprefix('http://')}", "version": ""}
    assert manifest["facts"]["dialect"] == "prompt_logprobs"
    assert all(fields["protocol"].endswith(" engine=mine-http") for fields in manifest["corpora"].values())
    tokens = ASKED.validate(pd.read_parquet(out / "tokens.parquet"))
    assert tokens.groupby("corpus").size().to_dict() == {"code": 6 * 31, "prose": 6 * 31}

    prose = tokens[tokens.corpus == "prose"]
    assert np.allclose(prose.nll, truth["nll"], atol=1e-4)
    assert np.allclose(prose.nll_weights, truth["nll"], atol=1e-4)
    assert np.array_equal(prose.same_top1 == 1, truth["same"])
    assert (tokens.same_top1_kernels == 1).all()
    kl = truth["kl"].numpy()
    assert kl.mean() > 1e-3
    assert (prose.kl_low <= kl + 1e-5).all()
    assert (prose.kl_high >= kl - 1e-5).all()
    assert np.isfinite(tokens.kl_high).all()
    assert (tokens.kl_high - tokens.kl_low).mean() > 0.01, "of the top 20 alone nothing is a point"
    # It is the checkpoint, which our own reading must not be further from than float32 is.
    assert (tokens.kernels_low < 1e-4).all()

    assert not list(tmp_path.glob("*.resume"))
    assert KEY not in caplog.text
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_of_the_whole_vocabulary_the_ends_meet(
    study: Path, answering: Lying, truth: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answering) as url:
        out = run(study, tmp_path / "out", url, monkeypatch, top=512, dialect="prompt_logprobs")
    prose = pd.read_parquet(out / "tokens.parquet").query("corpus == 'prose'")
    assert np.allclose(prose.kl_low, truth["kl"], atol=3e-5)
    assert np.allclose(prose.kl_high, truth["kl"], atol=3e-5)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"normalised"}, "normalises over the top k"),
        ({"counted-template"}, "reads 34 tokens where 32 were sent"),
        ({"says-key"}, "no log-probabilities of a prompt"),
        ({"always-drop"}, "the connection broke (RemoteProtocolError), 1 times; run again to resume"),
    ],
)
def test_a_server_that_lies_or_is_lost_is_a_gap_with_one_line(
    faults: set[str], reason: str, study: Path, answering: Lying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering.faults = frozenset(faults)
    monkeypatch.setenv("KEY_OF_THE_TEST", KEY)
    with serving(answering) as url:
        out = run(study, tmp_path / "out", url, monkeypatch, key_env="KEY_OF_THE_TEST")
    manifest = read_manifest(out)
    (line,) = manifest["gaps"].values()
    assert line.startswith(f"{url}: ")
    assert reason in line
    assert "\n" not in line
    assert "failure" not in manifest
    assert KEY not in (out / "manifest.json").read_text()
    assert not (out / "tokens.parquet").exists()


def test_a_server_that_is_away_is_a_gap(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(study, tmp_path / "out", "http://127.0.0.1:9", monkeypatch)
    assert "no server answers there" in read_manifest(out)["gaps"]["all"]


def test_a_job_after_a_kill_asks_for_the_windows_that_are_left(
    study: Path, answering: Lying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def killed(*arguments: Any) -> pd.DataFrame:
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return compare(*arguments)

    with serving(answering) as url:
        with monkeypatch.context() as patch:
            patch.setattr(served, "compare", killed)
            with pytest.raises(KeyboardInterrupt):
                run(study, tmp_path / "out", url, monkeypatch, concurrency=1)
        kept = len(list((tmp_path / "out.resume" / "answers").glob("*.npz")))
        assert 5 <= kept < 12
        probes, answering.seen = tuple(prompts(answering.seen)), []
        monkeypatch.setattr(served, "_write_states", None)
        out = run(study, tmp_path / "out", url, monkeypatch, concurrency=1)
    windows = {
        tuple(row) for each in load_file(study / "reference" / "windows.safetensors").values() for row in each.tolist()
    }
    asked = [each for each in prompts(answering.seen) if each in windows and each != probes[0]]
    assert len(asked) == len(set(asked)) <= 12 - kept
    assert len(pd.read_parquet(out / "tokens.parquet")) == 2 * 6 * 31


def test_of_a_server_that_was_lost_what_it_answered_stays(
    study: Path, answering: Lying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*arguments: Any) -> pd.DataFrame:
        answering.faults = frozenset({"always-drop"})
        return compare(*arguments)

    monkeypatch.setattr(served, "compare", lost)
    with serving(answering) as url:
        out = run(study, tmp_path / "out", url, monkeypatch, concurrency=1)
        assert "the connection broke" in read_manifest(out)["gaps"]["all"]
        assert 0 < len(list((tmp_path / "out.resume" / "answers").glob("*.npz"))) < 12
        answering.faults = frozenset()
        monkeypatch.setattr(served, "compare", compare)
        shutil.rmtree(out)
        run(study, out, url, monkeypatch, concurrency=1)
    assert len(pd.read_parquet(out / "tokens.parquet")) == 2 * 6 * 31
    assert not (tmp_path / "out.resume").exists()


def prompts(seen: list[dict[str, Any]]) -> Iterator[tuple[int, ...]]:
    """What a server was asked, as tokens."""
    return (tuple(body["prompt"]) for body in seen)


def test_a_key_that_is_not_there_is_said_before_work(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEY_OF_THE_TEST", raising=False)
    with pytest.raises(InputError, match="the environment variable KEY_OF_THE_TEST is empty"):
        run(study, tmp_path / "out", "http://127.0.0.1:9", monkeypatch, key_env="KEY_OF_THE_TEST")


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_no_logits_are_further_apart_than_their_range(softcap: float | None) -> None:
    """Against states that reach for it: those along the difference of two rows."""
    random = torch.Generator().manual_seed(0)
    weight, gain, bias = (torch.randn(*shape, generator=random) for shape in ((50, 24), (24,), (50,)))
    head = Head(weight, bias, input_scale=0.5, output_scale=2.0, softcap=softcap)
    sample = torch.randn(24, generator=random)

    def norm(states: torch.Tensor) -> torch.Tensor:
        return states / states.square().mean(-1, keepdim=True).sqrt() * gain

    largest = range_of(head, norm(torch.ones(24)), sample, norm(sample))
    differences = (weight[:, None] - weight[None]).flatten(0, 1) * gain
    states = torch.cat([differences[differences.any(-1)], torch.randn(500, 24, generator=random)])
    logits = head.logits(norm(states))
    reached = float((logits.max(-1).values - logits.min(-1).values).max())
    assert reached <= largest
    assert softcap is not None or reached > 0.4 * largest


def test_behind_another_norm_nothing_is_bounded() -> None:
    sample = torch.randn(24, generator=torch.Generator().manual_seed(0))
    normed = torch.nn.functional.layer_norm(sample + 1, (24,))
    assert range_of(Head(torch.ones(5, 24)), torch.zeros(24), sample + 1, normed) == float("inf")
