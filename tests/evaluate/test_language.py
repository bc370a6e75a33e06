"""Damage on texts against literal references on a real tiny model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from pyarrow.parquet import ParquetFile
from safetensors.torch import load_file, save_file

from hemorrhage.evaluate import language
from hemorrhage.evaluate.choices import log_likelihoods
from hemorrhage.evaluate.language import (
    SUMS,
    BaseSide,
    Predictions,
    corpus_damage,
    hidden_states,
    stored_head,
    write_base_side,
    write_tokens,
)
from hemorrhage.evaluate.reference import cut_windows
from hemorrhage.evaluate.schema import TOKENS
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.head import HEAD_OVERRIDE, Head, head_of
from tests.evaluate.texts import WINDOW, stream_of


@pytest.fixture(scope="module")
def of_base(model: Any, windows: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference's files about one corpus."""
    folder = tmp_path_factory.mktemp("reference")
    save_file({"prose": windows}, folder / "windows.safetensors")
    save_file({"prose": torch.bincount(windows.flatten(), minlength=512)}, folder / "counts.safetensors")
    write_base_side(model, {"prose": windows}, folder)
    return folder


def damage_of(altered: Any, of_base: Path, model: Any, at_once: int = 2, is_one_head: bool = False) -> pd.DataFrame:
    """The damage; the base's logits are computed again, or where ``is_one_head`` the reference's sums are used."""
    head = None if is_one_head else head_of(model)
    return pd.concat(corpus_damage(altered, of_base, "prose", head, at_once), ignore_index=True)


def test_special_tokens_in_front_of_a_text_are_not_predicted(model: Any, damaged: Any, of_base: Path) -> None:
    head = head_of(model)
    table = pd.concat(corpus_damage(damaged, of_base, "prose", head, 2, first_predicted=2), ignore_index=True)
    whole = damage_of(damaged, of_base, model)
    pd.testing.assert_frame_equal(table, whole[whole.position >= 2].reset_index(drop=True))
    assert len(table) == 3 * (WINDOW - 2)


def ten_likeliest(p: list[float]) -> list[int]:
    return sorted(range(len(p)), key=lambda token: -p[token])[:10]


@pytest.mark.parametrize("is_one_head", [False, True])
def test_damage_against_a_literal_double_loop(
    model: Any, damaged: Any, windows: torch.Tensor, of_base: Path, is_one_head: bool
) -> None:
    table = TOKENS.validate(damage_of(damaged, of_base, model, is_one_head=is_one_head))
    assert len(table) == 3 * (WINDOW - 1)
    for window, position in ((1, 5), (2, 23)):
        row = table[(table.window == window) & (table.position == position)].iloc[0]
        read = windows[window : window + 1, :position].long()
        with torch.no_grad():
            p = model(read).logits[0, -1].double().softmax(-1).tolist()
            q = damaged(read).logits[0, -1].double().softmax(-1).tolist()
        target = int(windows[window, position])
        likeliest, of_variant = (ten_likeliest(x) for x in (p, q))
        assert row["count"] == int((windows == target).sum())
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        assert row.kl == pytest.approx(kl, abs=1e-5)
        assert row.nll == pytest.approx(-math.log(q[target]), abs=1e-5)
        assert row.base_nll == pytest.approx(-math.log(p[target]), abs=1e-5)
        assert row.same_top1 == (likeliest[0] == of_variant[0])
        assert row.top10_overlap == pytest.approx(len({*likeliest} & {*of_variant}) / 10)
        assert row.entropy == pytest.approx(-sum(b * math.log(b) for b in q), abs=1e-5)
        assert row.base_entropy == pytest.approx(-sum(a * math.log(a) for a in p), abs=1e-5)
        assert row.confidence == pytest.approx(max(q), abs=1e-5)
        assert row.base_confidence == pytest.approx(max(p), abs=1e-5)
        assert row.right == (of_variant[0] == target)
        assert row.base_right == (likeliest[0] == target)
    assert table.kl.mean() > 1e-3, "the planted damage shows"
    assert 0 < table.top10_overlap.mean() < 1


@pytest.mark.parametrize("is_one_head", [False, True])
def test_acceptance_is_the_overlap_of_both_distributions(
    model: Any, damaged: Any, windows: torch.Tensor, of_base: Path, is_one_head: bool
) -> None:
    """Of blocks in bfloat16, against speculative sampling itself: drafted by q, kept with probability min(1, p / q)."""
    altered = copy.deepcopy(damaged)
    altered.model.layers.bfloat16().float()
    table = TOKENS.validate(damage_of(altered, of_base, model, is_one_head=is_one_head))
    looked_at = table[table.acceptance.notna()]
    assert sorted(looked_at.position.unique()) == list(range((WINDOW - 1) % 16 or 16, WINDOW, 16))
    for row in looked_at.itertuples():
        read = windows[row.window : row.window + 1, : row.position].long()
        with torch.no_grad():
            p, q = (side(read).logits[0, -1].double().softmax(-1) for side in (model, altered))
        kept = sum(float(b) * min(1.0, float(a) / float(b)) for a, b in zip(p, q, strict=True) if b > 0)
        assert row.acceptance == pytest.approx(kept, abs=1e-5)
    same = damage_of(model, of_base, model, is_one_head=is_one_head).acceptance.dropna()
    assert same.to_numpy() == pytest.approx(1.0, abs=1e-6)


def test_perplexity_and_kl_of_a_plain_loop_over_full_logits(
    model: Any, damaged: Any, tiny: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny)
    stream = stream_of("agreement", tokenizer)
    windows = cut_windows(stream, 64, 20, [tokenizer.bos_token_id])
    save_file({"prose": windows}, tmp_path / "windows.safetensors")
    save_file({"prose": torch.bincount(stream, minlength=512)}, tmp_path / "counts.safetensors")
    write_base_side(model, {"prose": windows}, tmp_path)
    table = damage_of(damaged, tmp_path, model, at_once=7)
    nll, base_nll, kl = [], [], []
    with torch.no_grad():
        for window in windows.long():
            p = torch.log_softmax(model(window[None]).logits[0, :-1].double(), -1)
            q = torch.log_softmax(damaged(window[None]).logits[0, :-1].double(), -1)
            nll.append(-q.gather(1, window[1:, None]).mean())
            base_nll.append(-p.gather(1, window[1:, None]).mean())
            kl.append((p.exp() * (p - q)).sum(-1).mean())
    assert math.exp(table.nll.mean()) == pytest.approx(float(torch.stack(nll).mean().exp()), rel=1e-5)
    assert math.exp(table.base_nll.mean()) == pytest.approx(float(torch.stack(base_nll).mean().exp()), rel=1e-5)
    assert table.kl.mean() == pytest.approx(float(torch.stack(kl).mean()), rel=1e-4)


def test_a_model_does_not_diverge_from_itself(model: Any, of_base: Path) -> None:
    for at_once, limit, is_one_head in ((3, 1e-9, False), (1, 1e-6, False), (3, 1e-9, True), (1, 1e-6, True)):
        table = damage_of(model, of_base, model, at_once, is_one_head)
        assert table.kl.abs().max() <= limit, "batches of another size are the noise floor"
        assert table.same_top1.all()
        assert (table.top10_overlap == 1).all()
        assert (table.nll - table.base_nll).abs().max() <= 1e4 * limit


def test_nll_is_the_loss_transformers_reports(model: Any, windows: torch.Tensor, of_base: Path) -> None:
    with torch.no_grad():
        loss = model(windows.long(), labels=windows.long()).loss
    assert damage_of(model, of_base, model).nll.mean() == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize(("kept", "tile"), [(2**24, 2**20), (300 * 7, 128 * 7), (1, 1)])
@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_tiles_and_parts_add_up(kept: int, tile: int, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(language.KEPT_LOGITS, "cpu", kept)
    monkeypatch.setitem(language.TILE_LOGITS, "cpu", tile)
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(300, 16, generator=generator)
    altered = head + noise * torch.randn(head.shape, generator=generator)
    # From flat distributions to ones that are certain, with logits in the hundreds.
    states = torch.randn(20, 16, generator=generator) * torch.logspace(-2, 2, 20)[:, None]
    targets = torch.randint(300, (20,), generator=generator)
    ours, base = Predictions(altered, 20, head), Predictions(head, 20)
    figures, likeliest, nothing, _ = base.of(states, targets)
    assert not nothing.any()
    found, top, kl, _ = ours.of(states, targets, BaseSide(states, figures, likeliest))
    p, q = ((states.double() @ weight.double().T).log_softmax(-1) for weight in (head, altered))
    assert torch.equal(top, q.topk(10).indices)
    expected = {
        "nll": -q.gather(1, targets[:, None])[:, 0],
        "entropy": -(q.exp() * q).sum(-1),
        "log_mass": -q.amax(-1),
        "kl": (p.exp() * (p - q)).sum(-1),
    }
    # Float32 logits are off by some 2^-24 of their terms; so is all that is made of them.
    rounding = 1e-6 + 5e-7 * (states @ altered.T).abs().amax(-1)
    for name, value in {"nll": found[:, 3], "entropy": found[:, 2], "log_mass": found[:, 1], "kl": kl}.items():
        assert ((value - expected[name]).abs() <= rounding).all(), name
    assert found[:, 2:].min() >= 0


def literal_kl(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Σ p (ln p − ln q) of rows of logits, as it is defined."""
    p, q = (np.exp(z - z.max(1, keepdims=True)) for z in (p, q))
    p, q = (each / each.sum(1, keepdims=True) for each in (p, q))
    terms: npt.NDArray[np.float64] = np.where(p > 0, p * (np.log(p) - np.log(q)), 0).sum(1)
    return terms


@pytest.mark.parametrize(
    ("vocabulary", "width", "dtype", "scales"),
    [
        (1000, 64, torch.float32, {}),
        (301, 17, torch.bfloat16, {}),
        (7, 5, torch.bfloat16, {}),
        (257, 33, torch.float32, {"output_scale": 1 / 8}),
        (257, 33, torch.bfloat16, {"input_scale": 1 / 3, "output_scale": 0.0625}),
    ],
    ids=["plain", "odd, bfloat16", "fewer tokens than the top", "granite", "minicpm and cohere"],
)
@pytest.mark.parametrize("moved", [1.0, 1e-3])
def test_kl_of_one_head_by_its_definition(
    vocabulary: int, width: int, dtype: torch.dtype, scales: dict[str, float], moved: float
) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype)
    # From flat distributions to ones that are certain.
    states = torch.randn(40, width, generator=generator) * torch.logspace(-2, 0.7, 40)[:, None]
    altered = states + moved * states.norm(dim=1, keepdim=True) / width**0.5 * torch.randn(
        40, width, generator=generator
    )
    targets = torch.randint(vocabulary, (40,), generator=generator)
    head = Head(weight.float(), None, scales.get("input_scale", 1.0), scales.get("output_scale", 1.0))
    base = Predictions(head, 40).of_base(states, targets)
    figures, top, kl, _ = Predictions(head, 13).of(altered, targets, base)
    factor = head.input_scale * head.output_scale
    z_p, z_q = (factor * x.double().numpy() @ weight.double().numpy().T for x in (states, altered))
    # Float32 logits are off by some 2^-24 of their terms.
    rounding = 1e-6 + 2e-7 * (np.abs(z_p).max(1) + np.abs(z_q).max(1))
    assert (np.abs(kl.numpy() - literal_kl(z_p, z_q)) <= rounding).all()
    of_both = Predictions(head, 13, head).of(altered, targets, base)
    assert torch.equal(figures, of_both[0])
    assert torch.equal(top, of_both[1])
    assert (kl - of_both[2]).abs().max() <= rounding.max()
    assert not Predictions(head, 40).of(states, targets, base)[2].any(), "nothing diverges from itself"


@pytest.mark.parametrize("kind", [Head(torch.ones(20, 4), softcap=3.0), Head(torch.ones(20, 4), torch.ones(20))])
def test_no_sums_are_kept_of_a_head_that_caps_or_adds(kind: Head) -> None:
    base = Predictions(kind, 3).of_base(torch.ones(3, 4), torch.arange(3))
    assert (base.likeliest, base.rest) == (None, None)
    assert base.top.shape == (3, 10)


def test_a_large_common_shift_of_the_logits_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    head, states = torch.randn(200, 8, generator=generator), torch.randn(6, 8, generator=generator)
    shifted = torch.cat([head, torch.full((200, 1), 300.0)], dim=1)
    longer = torch.cat([states, torch.ones(6, 1)], dim=1)
    targets = torch.arange(6)
    base = Predictions(head, 6).of(states, targets)
    found, _, kl, _ = Predictions(shifted, 6, head).of(longer, targets, BaseSide(states, base[0], base[1]))
    assert kl.abs().max() < 1e-4, "rounding of logits in the hundreds"
    assert torch.allclose(found[:, 2:], base[0][:, 2:], atol=1e-4)


def test_the_base_side_is_written_batch_by_batch(
    model: Any, windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "TOKENS_PER_BATCH", WINDOW)
    write_base_side(model, {"prose": windows, "code": windows[:2]}, tmp_path)
    hidden = load_file(tmp_path / "hidden.safetensors")
    assert {corpus: tuple(value.shape) for corpus, value in hidden.items()} == {
        "prose": (3, WINDOW, 64),
        "code": (2, WINDOW, 64),
    }
    assert torch.allclose(hidden["prose"], hidden_states(model, windows.long()), atol=1e-4)
    assert torch.equal(hidden["code"], hidden["prose"][:2])
    assert load_file(tmp_path / "figures.safetensors")["code"].dtype == torch.float64
    assert load_file(tmp_path / "top.safetensors")["prose"].shape == (3, WINDOW - 1, 10)


def test_sums_of_the_base_are_those_of_its_distribution(
    model: Any, windows: torch.Tensor, of_base: Path, tmp_path: Path
) -> None:
    likeliest, rest = (load_file(of_base / f"{name}.safetensors")["prose"] for name in SUMS)
    top = load_file(of_base / "top.safetensors")["prose"].long()
    with torch.no_grad():
        logits = model(windows.long()).logits[:, :-1]
    torch.testing.assert_close(likeliest, logits.gather(2, top))
    p = logits.double().softmax(-1).scatter(2, top, 0.0)
    torch.testing.assert_close(rest, p @ model.lm_head.weight.double(), atol=1e-7, rtol=1e-6)
    assert rest.dtype == torch.float64
    capped: Any = copy.copy(model)
    capped.__dict__ = {**vars(model), HEAD_OVERRIDE: replace(head_of(model), softcap=30.0)}
    write_base_side(capped, {"prose": windows}, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "hidden.safetensors",
        "figures.safetensors",
        "top.safetensors",
    }


def test_tokens_are_written_piece_by_piece(
    model: Any, damaged: Any, of_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = damage_of(damaged, of_base, model, at_once=1)
    monkeypatch.setattr(language, "ROWS", 2 * (WINDOW - 1))
    write_tokens(corpus_damage(damaged, of_base, "prose", head_of(model), 1), tmp_path / "tokens.parquet")
    assert ParquetFile(tmp_path / "tokens.parquet").num_row_groups == 2
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tokens.parquet"), whole, check_exact=True)


def test_logits_that_are_not_finite_are_an_error(
    model: Any, tiny: Path, windows: torch.Tensor, of_base: Path, tmp_path: Path
) -> None:
    broken: Any = load(tiny)
    with torch.no_grad():
        broken.model.norm.weight[3] = math.nan
    with pytest.raises(ValueError, match="corpus prose, window 0: the variant's likelihoods are not finite"):
        damage_of(broken, of_base, model)
    with pytest.raises(ValueError, match="corpus prose, from window 0: the base's logits are not finite"):
        write_base_side(broken, {"prose": windows}, tmp_path)
    with pytest.raises(ValueError, match="item 4: the likelihoods of its choices are not finite"):
        log_likelihoods(broken, [(4, [1, 2], [[3], [4]])], pad=0)


def test_another_vocabulary_is_an_error(model: Any, of_base: Path) -> None:
    with pytest.raises(ValueError, match="a vocabulary of 512 tokens, and the base model's has 500"):
        next(corpus_damage(model, of_base, "prose", Head(head_of(model).weight[:500]), 2))


def test_head_is_read_from_the_checkpoint(model: Any, tiny: Path) -> None:
    assert torch.equal(stored_head(tiny).weight, head_of(model).weight)
