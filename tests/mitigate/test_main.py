"""The mitigate step on a trained model: fitted on one half of the text, scored on the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.rows import corrections as of_corrections
from hemorrhage.analyze.rows import mitigations
from hemorrhage.analyze.spec import Spec
from hemorrhage.compress.__main__ import compress
from hemorrhage.evaluate.language import hidden_states, read_slice, write_base_side
from hemorrhage.mitigate import __main__ as step
from hemorrhage.mitigate.schema import TEXTS, TOKENS
from hemorrhage.mitigate.trajectories import Task
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure, read_manifest, write_manifest
from tests.conftest import STORIES
from tests.layers import generate

WINDOWS, OTHER, LENGTH = 64, 9, 64


@pytest.fixture(scope="module")
def study(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference on what the model itself says, and a variant of 2 bits."""
    root = tmp_path_factory.mktemp("mitigate")
    model = load(trained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = torch.full((WINDOWS, 1), model.config.bos_token_id)
        options: dict[str, Any] = {"do_sample": True, "top_k": 0, "min_new_tokens": LENGTH - 1, "pad_token_id": 0}
        windows = generate(model, start, max_new_tokens=LENGTH - 1, **options).int()
    folder = root / "reference"
    folder.mkdir()
    texts = {"prose": windows, "other": windows[:OTHER].clone()}
    save_file(texts, folder / "windows.safetensors")
    write_base_side(model, texts, folder)
    protocol = f'window={LENGTH} stride={LENGTH} windows={WINDOWS}/99 bos=1 join="" predicted=4032 dtype=float32'
    other = protocol.replace(f"windows={WINDOWS}", f"windows={OTHER}").replace("=4032", f"={OTHER * 63}")
    corpora = {name: {"sha256": "ab", "protocol": text} for name, text in (("prose", protocol), ("other", other))}
    write_manifest(folder, corpora=corpora, first_predicted=1)
    (root / "sums").mkdir()
    items = [(n, f"Once {'upon ' * (n % 2)}{n} + 1 =", [f" {n + 1}", " 0"], 0) for n in range(8)]
    pd.DataFrame(items, columns=["item", "prompt", "choices", "answer"]).to_parquet(root / "sums/items.parquet")
    write_manifest(root / "sums", sha256="cd", chance=0.5)
    spec = {"sweep": "s", "method": "rtn", "seed": 0}
    settings = {"bits": 3, "group_size": "channel"}
    compress(root / "variant", "v", trained, None, None, [], {**spec, "settings": settings})
    return root


SPEC: dict[str, Any] = {
    "corpus": "prose",
    "corpora": ["prose", "other"],
    "closed_ended": [{"task": "sums", "items": 6, "new_tokens": 3, "shots": 0}],
    "tokens": 1000,
    "buckets": 3,
    "steps": 6,
    "p": 0.95,
    "open_ended": {"items": 5, "prefix": 8, "new_tokens": 12},
    "seed": 0,
}


@pytest.fixture(scope="module")
def table(study: Path, trained: Path) -> pd.DataFrame:
    step.mitigate(study / "out", "v", study / "variant", trained, study / "reference", [study / "sums"], SPEC)
    return TOKENS.validate(pd.read_parquet(study / "out" / "tokens.parquet"))


@pytest.fixture(scope="module")
def found(study: Path, table: pd.DataFrame) -> dict[str, mitigations.Measured]:
    """Each correction's first metric on the second half, as the analyze step reads it."""
    manifest: Any = read_manifest(study / "out")
    texts = TEXTS.validate(pd.read_parquet(study / "out" / "texts.parquet"))
    output = Output(manifest, {"tokens.parquet": table, "texts.parquet": texts})
    variant = Variant("v", "s", "weight_quantization", "rtn", "", "", "bits", 3.0, 0, "base", {})
    trials = of_corrections.trials_of(variant, output, Spec(1000, 0.95, 0, {}))
    return {trial.label.removeprefix("correction="): trial.measured[0] for trial in trials}


ALL = {"none", "temperature", "entropy buckets", "bias", "gain", "top_p", "nucleus"}


def test_the_step_scores_the_second_halves_and_what_it_writes(study: Path, table: pd.DataFrame) -> None:
    text, generations = (table[table["part"] == part] for part in ("text", "generation"))
    sides = 7 + 2 * 5
    for corpus, windows in (("prose", range(WINDOWS // 2, WINDOWS)), ("other", range(OTHER // 2, OTHER))):
        mine = text[text["dataset"] == corpus]
        assert sorted(mine["window"].unique()) == list(windows)
        sizes = mine.groupby(["correction", "shuffled"]).size()
        assert (len(sizes), sizes.unique().tolist()) == (sides, [len(windows) * (LENGTH - 1)])
        written = generations[generations["dataset"] == corpus]
        assert sorted(written["window"].unique()) == list(windows)[:5]
        assert len(written.groupby(["correction", "shuffled"])) == sides
    assert generations["position"].min() == 8
    assert generations["position"].max() < 8 + 12
    assert set(text["correction"]) == ALL
    manifest = read_manifest(study / "out")
    assert manifest["fitted"] == 1000
    assert "windows=last-32-of-64/99" in manifest["protocol"]["prose"]
    assert f"predicted={32 * 63} " in manifest["protocol"]["prose"]
    assert manifest["protocol"]["sums"] == "items=6 new_tokens=3"
    assert manifest["datasets"]["sums"] == {"sha256": "cd", "chance": 0.5}
    assert set(manifest["seconds_per_token"]) == ALL
    assert min(manifest["seconds_per_token"].values()) > 0
    fits = json.loads((study / "out" / "fits.json").read_text())
    assert len(fits["entropy buckets"]["temperature"]) == 3


def test_what_is_written_is_a_row_with_what_the_base_writes(study: Path, trained: Path, table: pd.DataFrame) -> None:
    assert len(table)
    texts = TEXTS.validate(pd.read_parquet(study / "out" / "texts.parquet"))
    greedy, sampled = (texts[texts["search"] == search] for search in ("greedy", "sampling"))
    assert set(greedy["correction"]) == {"base", "none", "bias", "gain"}
    assert set(sampled["correction"]) == {"base", "base top_p", *ALL}
    for _, side in texts.groupby(["correction", "shuffled", "search"]):
        assert side.groupby("dataset").size().to_dict() == {"sums": 6, "prose": 5, "other": 5}
    own = greedy[(greedy["correction"] == "base") & (greedy["dataset"] == "prose")]
    assert (own["agreement"] == own["base_length"]).all()
    # By transformers alone: the greedy text, and its surprise.
    model, windows = (
        load(trained),
        read_slice(study / "reference" / "windows.safetensors", "prose", slice(32, 33)).long(),
    )
    whole = generate(model, windows[:, :8], max_new_tokens=12, do_sample=False, pad_token_id=0)
    tokens = own[own["item"] == 32]["tokens"].iloc[0].tolist()
    assert tokens == whole[0, 8 : 8 + len(tokens)].tolist()
    with torch.no_grad():
        log = model(whole[:, : 8 + len(tokens)]).logits.log_softmax(-1)
    nll = -log[0, 7:-1].gather(1, whole[0, 8 : 8 + len(tokens), None]).mean().item()
    assert own[own["item"] == 32]["base_nll"].iloc[0] == pytest.approx(nll, rel=1e-4)


def test_the_plain_side_is_the_variant_itself(study: Path, trained: Path, table: pd.DataFrame) -> None:
    plain = table[(table["correction"] == "none") & (table["part"] == "text") & (table["dataset"] == "prose")]
    base, variant = load(trained), load(study / "variant", base=trained)
    windows = read_slice(study / "reference" / "windows.safetensors", "prose", slice(32, 34)).long()
    with torch.no_grad():
        p, q = (model(windows).logits[:, :-1].double().log_softmax(-1) for model in (base, variant))
    expected = (p.exp() * (p - q)).sum(-1).flatten()
    found = torch.tensor(plain[plain["window"] < 34]["kl"].to_numpy(np.float64))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


CORRECTIONS = ["temperature", "entropy buckets", "bias", "gain"]
if STORIES.is_dir():
    # Of the model that the tests carry, a nucleus is worse by a thousandth on text that it was not fitted to.
    CORRECTIONS.append("nucleus")


@pytest.mark.parametrize("name", CORRECTIONS)
def test_on_the_other_half_it_is_never_worse_and_its_shuffled_recovers_nothing(
    found: dict[str, mitigations.Measured], name: str
) -> None:
    measured = found[name]
    assert measured.metric == ("distance" if name == "nucleus" else "kl_mean")
    assert measured.control is not None
    own = mitigations.recovery(measured.plain, measured.treated, 0.95)
    control = mitigations.recovery(measured.plain, measured.control, 0.95)
    assert own is not None
    assert control is not None
    assert own.high >= 0, own
    assert control.low <= 0, control
    if name != "nucleus":
        assert mitigations.verdict(measured, 0.95, 0.01).startswith("recovers")


def test_a_variant_that_was_not_made_is_recorded(
    study: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    write_manifest(broken, variant="v", failure="out of luck")
    folders = {"--checkpoint": broken, "--base": trained, "--reference": study / "reference"}
    words = [str(word) for pair in folders.items() for word in pair] + ["--closed-ended", str(study / "sums")]
    command = ["mitigate", str(tmp_path / "out"), "--variant", "v", *words, "--spec", json.dumps(SPEC)]
    monkeypatch.setattr(sys, "argv", command)
    step.main()
    assert "out of luck" in str(failure(tmp_path / "out"))
    assert set(read_manifest(tmp_path / "out")["protocol"]) == {"prose", "other", "sums"}


def test_texts_that_several_corrections_wrote_are_read_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their states are those of each text alone, but for what a product of more rows rounds otherwise."""
    model = load(trained)
    generator = torch.Generator().manual_seed(0)
    first, second, other = (torch.randint(1, 200, (2, width), generator=generator) for width in (12, 12, 9))
    task = Task("open_ended", "prose", [], 4)
    texts = (first, second, first, other, torch.cat([second[:1], first[1:]]))
    drawn = [step.Drawn(task, ("none", 0), windows, [windows.shape[1]] * 2) for windows in texts]
    expected = [step.all_states(model, each.windows) for each in drawn]
    read: list[int] = []

    def counted(model: Any, windows: torch.Tensor) -> torch.Tensor:
        read.append(len(windows))
        return hidden_states(model, windows)

    monkeypatch.setattr(step, "hidden_states", counted)
    found = step.states_of(model, drawn)
    assert sum(read) == 6
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5)
