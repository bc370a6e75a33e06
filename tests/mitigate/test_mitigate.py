"""Calibration of decoding: fits against grid searches and definitions, on small heads and on a trained model."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.rows import corrections as of_corrections
from hemorrhage.analyze.rows import mitigations
from hemorrhage.analyze.spec import Spec
from hemorrhage.compress.__main__ import compress
from hemorrhage.evaluate.language import write_base_side
from hemorrhage.mitigate import __main__ as step
from hemorrhage.mitigate import corrections
from hemorrhage.mitigate.corrections import Model, identity
from hemorrhage.mitigate.schema import TOKENS
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure, read_manifest, write_manifest

VOCABULARY, HIDDEN, TOKENS_THERE = 60, 12, 500


def sides(noise: float = 0.6, scale: float = 1.6) -> tuple[Model, Model]:
    """A base, and a variant whose logits are noisy and too large."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator) * 0.6
    states = torch.randn(TOKENS_THERE, HIDDEN, generator=generator)
    wrong = scale * (states + noise * torch.randn(states.shape, generator=generator))
    return Model(wrong, head + 0.05 * torch.randn(head.shape, generator=generator)), Model(states, head)


def kl(correction: corrections.Correction, variant: Model, base: Model) -> Tensor:
    """KL(base || corrected) of each token, by the definition."""
    raw = variant.states @ variant.head.T
    p = (base.states @ base.head.T).double().log_softmax(-1)
    q = correction.logits(raw, variant.states, variant.head).double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.6, 5.0])
def test_the_temperature_is_that_of_a_grid_search(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "LOGITS", 70 * VOCABULARY)
    variant, base = sides(scale=scale)
    found = corrections.temperatures(corrections.pair(variant, base), 1)
    grid = torch.linspace(0.02, 5, 2000).tolist()
    costs = [kl(replace(identity(), beta=torch.tensor([beta])), variant, base).mean().item() for beta in grid[::20]]
    near = int(np.argmin(costs)) * 20
    close = grid[max(near - 20, 0) : near + 20]
    costs = [kl(replace(identity(), beta=torch.tensor([beta])), variant, base).mean().item() for beta in close]
    assert found.beta.item() == pytest.approx(close[int(np.argmin(costs))], abs=0.003)
    # The optimum's condition: both predictions give the variant's logits the same mean.
    z = (variant.states @ variant.head.T).double()
    p = (base.states @ base.head.T).double().softmax(-1)
    q = (z * found.beta.item()).softmax(-1)
    assert (p * z).sum(-1).mean().item() == pytest.approx((q * z).sum(-1).mean().item(), abs=2e-3)


def test_newton_converges_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pairing = corrections.pair(*sides(scale=8.0))
    whole = corrections.temperatures(pairing, 4)
    monkeypatch.setattr(corrections, "NEWTON_STEPS", 12)
    torch.testing.assert_close(corrections.temperatures(pairing, 4).beta, whole.beta, rtol=1e-4, atol=0)


def test_buckets_are_temperatures_of_their_own() -> None:
    variant, base = sides()
    pairing = corrections.pair(variant, base)
    found = corrections.temperatures(pairing, 3)
    bucket = torch.bucketize(corrections.entropy(variant.states @ variant.head.T), found.edges)
    assert bucket.bincount().tolist() == pytest.approx([TOKENS_THERE / 3] * 3, abs=1)
    for number in range(3):
        members = (bucket == number).nonzero()[:, 0]
        alone = corrections.temperatures(corrections.pair(variant.at(members), base.at(members)), 1)
        assert found.beta[number].item() == pytest.approx(alone.beta.item(), rel=1e-3)
    one = corrections.temperatures(pairing, 1)
    assert kl(found, variant, base).mean() <= kl(one, variant, base).mean() + 1e-9


def test_equal_predictions_need_no_correction() -> None:
    _, base = sides()
    found = corrections.fit(base, base, buckets=3, steps=3, p=0.9, seed=0)
    for name in ("temperature", "entropy buckets", "bias", "gain", "nucleus"):
        one = found[name, 0]
        torch.testing.assert_close(one.beta, torch.ones_like(one.beta), rtol=1e-3, atol=0)
        if one.bias is not None:
            assert one.bias.abs().max() < 1e-3
        if one.gain is not None:
            torch.testing.assert_close(one.gain, torch.ones(HIDDEN), rtol=0, atol=2e-3)
        if one.top_p is not None:
            assert one.top_p == pytest.approx(0.9, abs=0.01)


def test_biases_move_the_mean_of_the_predictions_to_the_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "PRIOR", 0.0)
    monkeypatch.setattr(corrections, "ROUNDS", 30)
    variant, base = sides()
    pairing = corrections.pair(variant, base)
    start = corrections.temperatures(pairing, 1)
    found = corrections.biased(pairing, start)
    raw = variant.states @ variant.head.T
    mean = found.logits(raw, variant.states, variant.head).softmax(-1).mean(0)
    torch.testing.assert_close(mean.double(), pairing.frequency, rtol=2e-3, atol=1e-6)
    costs = []
    for rounds in range(4):
        monkeypatch.setattr(corrections, "ROUNDS", rounds)
        costs.append(kl(corrections.biased(pairing, start), variant, base).mean().item())
    assert costs == sorted(costs, reverse=True)


def test_gains_are_the_optimum_of_their_convex_objective() -> None:
    variant, base = sides()
    found = corrections.gained(corrections.pair(variant, base), 60)
    gain = torch.ones(HIDDEN, dtype=torch.float64, requires_grad=True)
    states, head = variant.states.double(), variant.head.double()
    p = (base.states @ base.head.T).double().softmax(-1)
    optimizer = torch.optim.LBFGS([gain], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        q = ((states * gain) @ head.T).log_softmax(-1)
        loss = -(p * q).sum(-1).mean() + corrections.RIDGE * (gain - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found.gain is not None
    torch.testing.assert_close(found.gain.double(), gain.detach(), rtol=0, atol=3e-3)


def test_the_nucleus_surprises_as_much_as_the_bases() -> None:
    variant, base = sides(scale=0.7)
    found = corrections.remapped(variant, base, 0.9)[0]

    def surprise(side: Model, share: float) -> float:
        left = corrections.nucleus(side.states @ side.head.T, share).double().softmax(-1)
        return -(left * left.clamp(min=1e-300).log()).sum(-1).mean().item()

    assert found.top_p is not None
    assert surprise(variant, found.top_p) == pytest.approx(surprise(base, 0.9), abs=0.01)
    assert abs(surprise(variant, 0.9) - surprise(base, 0.9)) > 0.1


def test_a_nucleus_is_the_fewest_likeliest_tokens_with_the_mass() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.5, 0.3]]).log()
    for p, kept in ((0.4, 1), (0.79, 2), (0.94, 3), (0.999, 4)):
        inside = corrections.nucleus(logits, p).isfinite()
        assert inside.sum(-1).tolist() == [kept, kept]
        assert inside[0].tolist() == [place < kept for place in range(4)]


def test_scores_are_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "LOGITS", 33 * VOCABULARY)
    variant, base = sides()
    targets = torch.randint(VOCABULARY, (TOKENS_THERE,), generator=torch.Generator().manual_seed(1))
    found = corrections.fit(variant, base, buckets=3, steps=2, p=0.9, seed=0)
    rows = corrections.score(found, variant, base, targets, 0.9)
    raw = variant.states @ variant.head.T
    p = (base.states @ base.head.T).softmax(-1)
    for name, correction in found.items():
        q = correction.logits(raw, variant.states, variant.head).softmax(-1)
        of_base = p if correction.top_p is None else corrections.nucleus(p.log(), 0.9).softmax(-1)
        torch.testing.assert_close(rows[name]["distance"], (q - of_base).abs().sum(-1) / 2)
        assert torch.equal(rows[name]["right"], q.argmax(-1) == targets)
        if correction.top_p is None:
            expected = kl(correction, variant, base).float()
            torch.testing.assert_close(rows[name]["kl"], expected, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(rows[name]["nll"], -q.log().gather(1, targets[:, None])[:, 0])
    # What was registered before it was measured: a temperature can't change which token is the likeliest.
    for name in ("temperature", "entropy buckets"):
        assert torch.equal(rows[name, 0]["right"], rows["none", 0]["right"])
        assert torch.equal(rows[name, 0]["same_top1"], rows["none", 0]["same_top1"])


def test_controls_shuffle_the_same_numbers() -> None:
    variant, base = sides()
    true = corrections.pair(variant, base)
    shuffle = corrections.draw_shuffle(TOKENS_THERE, torch.Generator().manual_seed(0), torch.device("cpu"))
    control, other = corrections.controls_of(true, [shuffle, shuffle.opposite()])
    own = (variant.states @ variant.head.T).softmax(-1) @ variant.head
    before, after = ((one.target - own).norm(dim=1).sort().values for one in (true, control))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((control.target + other.target) / 2, own, rtol=0, atol=1e-5)
    found = corrections.biased(true, identity())
    shuffled = corrections.shuffled_biases(found, true.frequency, torch.Generator().manual_seed(0))
    assert found.bias is not None
    assert shuffled.bias is not None
    assert torch.equal(found.bias.sort().values, shuffled.bias.sort().values)
    assert not torch.equal(found.bias, shuffled.bias)


# On a trained model.

WINDOWS, LENGTH = 64, 64


@pytest.fixture(scope="module")
def study(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference on what the model itself says, and a variant of 2 bits."""
    root = tmp_path_factory.mktemp("mitigate")
    model = load(tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = torch.full((WINDOWS, 1), model.config.bos_token_id)
        options = {"do_sample": True, "top_k": 0, "min_new_tokens": LENGTH - 1, "pad_token_id": 0}
        windows = model.generate(start, max_new_tokens=LENGTH - 1, **options).int()
    folder = root / "reference"
    folder.mkdir()
    save_file({"prose": windows}, folder / "windows.safetensors")
    write_base_side(model, {"prose": windows}, folder)
    protocol = f'window={LENGTH} stride={LENGTH} windows={WINDOWS}/99 bos=1 join="" predicted=4032 dtype=float32'
    write_manifest(folder, corpora={"prose": {"sha256": "ab", "protocol": protocol}})
    spec = {"sweep": "s", "method": "rtn", "seed": 0}
    settings = {"bits": 3, "group_size": "channel"}
    compress(root / "variant", "v", tiny, None, None, [], {**spec, "settings": settings})
    return root


SPEC: dict[str, Any] = {
    "corpus": "prose",
    "tokens": 1000,
    "buckets": 3,
    "steps": 6,
    "p": 0.95,
    "open": {"items": 6, "prefix": 8, "new_tokens": 12},
    "seed": 0,
}


@pytest.fixture(scope="module")
def table(study: Path, tiny: Path) -> pd.DataFrame:
    step.mitigate(study / "out", "v", study / "variant", tiny, study / "reference", SPEC)
    return TOKENS.validate(pd.read_parquet(study / "out" / "tokens.parquet"))


@pytest.fixture(scope="module")
def found(study: Path, table: pd.DataFrame) -> dict[str, mitigations.Measured]:
    """Each correction's first metric on the second half, as the analyze step reads it."""
    output = Output(read_manifest(study / "out"), {"tokens.parquet": table})
    variant = Variant("v", "s", "weight_quantization", "rtn", "", "", "bits", 3.0, 0, "base", {})
    trials = of_corrections.trials_of(variant, output, Spec(1000, 0.95, 0, {}))
    return {trial.label.removeprefix("correction="): trial.measured[0] for trial in trials}


def test_the_step_scores_the_other_half_and_generations(study: Path, table: pd.DataFrame) -> None:
    text, generations = (table[table["part"] == part] for part in ("text", "generation"))
    assert sorted(text["window"].unique()) == list(range(WINDOWS // 2, WINDOWS))
    assert text.groupby(["correction", "shuffled"]).size().unique().tolist() == [WINDOWS // 2 * (LENGTH - 1)]
    assert generations.groupby(["correction", "shuffled"]).size().unique().tolist() == [6 * 12]
    assert generations["position"].min() == 8
    assert (generations["shuffled"] == 0).all()
    assert set(text["correction"]) == {"none", "temperature", "entropy buckets", "bias", "gain", "top_p", "nucleus"}
    manifest = read_manifest(study / "out")
    assert manifest["fitted"] == 1000
    assert "windows=last-32-of-64/99" in manifest["protocol"]
    assert f"predicted={32 * 63} " in manifest["protocol"]
    fits = json.loads((study / "out" / "fits.json").read_text())
    assert len(fits["entropy buckets"]["temperature"]) == 3


def test_the_plain_side_is_the_variant_itself(study: Path, tiny: Path, table: pd.DataFrame) -> None:
    plain = table[(table["correction"] == "none") & (table["part"] == "text")]
    base, variant = load(tiny), load(study / "variant", base=tiny)
    windows = step.read_slice(study / "reference" / "windows.safetensors", "prose", slice(32, 34)).long()
    with torch.no_grad():
        p, q = (model(windows).logits[:, :-1].double().log_softmax(-1) for model in (base, variant))
    expected = (p.exp() * (p - q)).sum(-1).flatten()
    found = torch.tensor(plain[plain["window"] < 34]["kl"].to_numpy(np.float64))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["temperature", "entropy buckets", "bias", "gain", "nucleus"])
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
        assert mitigations.verdict(measured, 0.95) == "recovers"


def test_a_variant_that_was_not_made_is_recorded(
    study: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    write_manifest(broken, variant="v", failure="out of luck")
    folders = {"--checkpoint": broken, "--base": tiny, "--reference": study / "reference"}
    words = [str(word) for pair in folders.items() for word in pair]
    command = ["mitigate", str(tmp_path / "out"), "--variant", "v", *words, "--spec", json.dumps(SPEC)]
    monkeypatch.setattr(sys, "argv", command)
    step.main()
    assert "out of luck" in str(failure(tmp_path / "out"))
    assert math.isfinite(len(read_manifest(tmp_path / "out")["protocol"]))
