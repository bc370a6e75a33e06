"""A user's conversations through the steps: rendered, cut, scored where the assistant speaks, by category."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.rows.language import Resamples, language_rows
from hemorrhage.analyze.spec import Spec as AnalysisSpec
from hemorrhage.data.source import File
from hemorrhage.data.texts.__main__ import prepare
from hemorrhage.evaluate.__main__ import evaluate
from hemorrhage.evaluate.reference import Spec, reference, text_sizes
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.reload import write_check
from hemorrhage.runtime.artifact import read_manifest, write_manifest
from hemorrhage.runtime.step import InputError
from tests.chats import conversation, with_template, write_jsonl

WINDOW = 48
SPEC: Spec = {
    "dtype": "float32",
    "window": WINDOW,
    "windows": "all",
    "diagnostics": {"windows": 2, "window": 24},
}


@pytest.fixture(scope="module")
def study(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its reference on a user's conversations and on plain texts, a damaged checkpoint and its evaluation."""
    root = tmp_path_factory.mktemp("study")
    base = with_template(tiny, root / "base")
    write_manifest(base, leading=[1], vocabulary=512)
    talks = [conversation(number, 1 + number % 2, category=("billing", "other")[number % 2]) for number in range(10)]
    file = write_jsonl(root / "support.jsonl", talks)
    for corpus, score in (("support", "assistant"), ("all", "all")):
        data = File(source="file", path=str(file), split="evaluation", score=score)  # type: ignore[typeddict-item]
        prepare(corpus, base, data, {"windows": 2, "window": WINDOW}, root / corpus)
    reference(root / "reference", base, [root / "support", root / "all"], [], SPEC)
    damaged = load(base)
    with torch.no_grad():
        for layer in damaged.model.layers:
            layer.mlp.down_proj.weight *= 1.2
    damaged.save_pretrained(root / "checkpoint")
    write_check(damaged, root / "checkpoint", seed=0)
    write_manifest(root / "checkpoint", variant="v", theoretical="nothing gained")
    evaluate(root / "evaluation", "v", root / "checkpoint", base, root / "reference", [])
    return root


def tokens_of(study: Path, corpus: str) -> pd.DataFrame:
    tokens = pd.read_parquet(study / "evaluation" / "tokens.parquet")
    return tokens[tokens["corpus"] == corpus]


def test_the_assistants_tokens_are_evaluated_and_no_others(study: Path) -> None:
    windows = load_file(study / "reference" / "windows.safetensors")["support"]
    scored = load_file(study / "reference" / "scored.safetensors")["support"]
    tokens = tokens_of(study, "support")
    assert len(tokens) == int(scored.sum()) > 0
    evaluated = torch.zeros_like(scored)
    evaluated[tokens["window"].tolist(), tokens["position"].tolist()] = True
    assert torch.equal(evaluated, scored)
    tokenizer = load_tokenizer(study / "base")
    said = tokenizer.decode(windows[0][scored[0]])
    assert "The ball is under the big tree" in said
    assert "Where is my ball" not in said
    stated = read_manifest(study / "evaluation")["corpora"]["support"]["protocol"]
    assert f"predicted={int(scored.sum())} dtype=float32 cut=segments score=assistant" in stated


def test_likelihood_and_divergence_are_those_of_the_models_own_logits(study: Path) -> None:
    """The first conversation alone, through transformers."""
    base, altered = (load(study / name, base=study / "base") for name in ("base", "checkpoint"))
    window = load_file(study / "reference" / "windows.safetensors")["support"][:1].long()
    scored = load_file(study / "reference" / "scored.safetensors")["support"][0]
    with torch.no_grad():
        p, q = (model(window).logits[0].double().log_softmax(-1) for model in (base, altered))
    positions = scored.nonzero()[:, 0]
    tokens = tokens_of(study, "support").query("window == 0").sort_values("position")
    assert tokens["position"].tolist() == positions.tolist()
    nll = -q[positions - 1].gather(1, window[0, positions][:, None])[:, 0]
    kl = (p.exp() * (p - q)).sum(-1)[positions - 1]
    np.testing.assert_allclose(tokens["nll"], nll, atol=1e-5)
    np.testing.assert_allclose(tokens["kl"], kl, atol=1e-5)


def test_what_comes_after_a_conversation_changes_nothing(study: Path) -> None:
    """The last window of a conversation is filled with the next one, which no token before it sees."""
    windows = load_file(study / "reference" / "windows.safetensors")["all"]
    scored = load_file(study / "reference" / "scored.safetensors")["all"]
    partly = int((~scored[:, 1:]).any(1).nonzero()[0, 0])
    end = int(scored[partly].nonzero()[-1, 0]) + 1
    assert end < WINDOW
    model = load(study / "base")
    with torch.no_grad():
        alone = model(windows[partly : partly + 1, :end].long()).logits[0].double().log_softmax(-1)
    targets = windows[partly, 1:end].long()
    expected = -alone[:-1].gather(1, targets[:, None])[:, 0]
    of_window = tokens_of(study, "all").query(f"window == {partly}").sort_values("position")
    assert len(of_window) == end - 1
    np.testing.assert_allclose(of_window["base_nll"], expected, atol=1e-5)


def test_windows_know_their_category_and_the_size_of_what_is_scored(study: Path) -> None:
    windows = pd.read_parquet(study / "evaluation" / "windows.parquet")
    support = windows[windows["corpus"] == "support"]
    assert set(support["category"]) == {"billing", "other"}
    assert support["tokens"].tolist() == tokens_of(study, "support").groupby("window").size().tolist()
    tokens = load_file(study / "reference" / "windows.safetensors")["all"]
    scored = load_file(study / "reference" / "scored.safetensors")["all"]
    everywhere = text_sizes(tokens, load_tokenizer(study / "base"), "all")
    whole = scored[:, 1:].all(1).numpy()
    assert whole.any()
    of_all = windows[windows["corpus"] == "all"].reset_index(drop=True)
    for column in ("tokens", "words", "bytes"):
        assert of_all.loc[whole, column].tolist() == everywhere.loc[whole, column].tolist()
        assert (of_all[column] <= everywhere[column]).all()
    # A window that begins inside a word counts the rest of it as one.
    documents = pd.read_parquet(study / "support" / "documents.parquet")["text"]
    said = [line.partition(": ")[2] for text in documents for line in text.split("\n") if line.startswith("assistant")]
    assert 0 <= support["words"].sum() - sum(len(answer.split()) for answer in said) < len(support) / 2
    assert (support["words"] < support["bytes"]).all()


def test_rows_have_the_categories(study: Path) -> None:
    output = Output(
        read_manifest(study / "evaluation"),  # type: ignore[arg-type]
        {name: pd.read_parquet(study / "evaluation" / name) for name in ("tokens.parquet", "windows.parquet")},
    )
    manifest = CheckpointManifest(variant="v", family="quantize", method="rtn")
    spec = AnalysisSpec(resamples=100, confidence=0.95, seed=0)
    rows = list(language_rows(Variant.of_manifest(manifest, {}), output, spec, Resamples()))
    by_metric = {row.metric.partition("[")[0]: row for row in rows if row.dataset == "support"}
    tokens, windows = tokens_of(study, "support"), output.tables["windows.parquet"].query("corpus == 'support'")
    for category, of_category in windows.groupby("category"):
        inside = tokens[tokens["window"].isin(of_category["window"])]
        row = by_metric[f"kl_mean{{category={category}}}"]
        assert row.estimate == pytest.approx(inside["kl"].mean())
        assert row.n == len(of_category)
        assert row.low < row.estimate < row.high
        assert by_metric[f"same_top1{{category={category}}}"].estimate == pytest.approx(inside["same_top1"].mean())
        assert f"ln_perplexity_ratio{{category={category}}}" in by_metric
    assert by_metric["kl_mean"].estimate == pytest.approx(tokens["kl"].mean())
    assert by_metric["kl_mean"].metric.endswith("-f32-assistant]")


def test_too_few_windows_are_one_line(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^corpus support: \d+ tokens make \d+ windows of 48, not 999$"):
        reference(tmp_path / "reference", study / "base", [study / "support"], [], {**SPEC, "windows": 999})


def test_other_corpora_are_as_they_were(study: Path, tmp_path: Path) -> None:
    """A text without segments is cut into the same windows next to a user's file, and has no mask."""
    plain = tmp_path / "plain"
    shutil.copytree(study / "all", plain)
    (plain / "segments.parquet").unlink()
    write_manifest(plain, corpus="plain", sha256="x", join="")
    for name, texts in (("alone", [plain]), ("both", [plain, study / "support"])):
        reference(tmp_path / name, study / "base", texts, [], {**SPEC, "windows": 4})
    for file in ("windows", "hidden", "figures", "top", "counts"):
        alone, both = (load_file(tmp_path / name / f"{file}.safetensors")["plain"] for name in ("alone", "both"))
        assert torch.equal(alone, both)
    assert not (tmp_path / "alone" / "scored.safetensors").exists()
    assert set(load_file(tmp_path / "both" / "scored.safetensors")) == {"support"}
    assert "category" not in pd.read_parquet(tmp_path / "alone" / "windows.parquet")
    windows = pd.read_parquet(tmp_path / "both" / "windows.parquet")
    assert set(windows.loc[windows["corpus"] == "plain", "category"]) == {""}
