"""What llmcompressor does on the same layers: the peer we agree with, and its modifier that does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hemorrhage.compress import gptq, rtn
from hemorrhage.compress.blocks import linears_of
from hemorrhage.compress.statistics import Statistics
from hemorrhage.models.checkpoint import load
from tests.calibration import calibrated


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("peers"))


def data(calibration: Path) -> Dataset:
    tokens = load_file(calibration / "tokens.safetensors")["tokens"].tolist()
    return Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]})


def divergence(base: PreTrainedModel, other: PreTrainedModel, calibration: Path) -> float:
    """Mean KL(base ‖ other), nats per token."""
    tokens = load_file(calibration / "tokens.safetensors")["tokens"].long()
    with torch.no_grad():
        a, b = (model(tokens).logits.log_softmax(-1) for model in (base, other))
    return (a.exp() * (a - b)).sum(-1).mean().item()


def test_rtn_is_that_of_the_quantization_modifier(tiny: Path) -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    peer = load(tiny)
    scheme = {"weights": {"num_bits": 3, "symmetric": False, "strategy": "group", "group_size": 4}}
    recipe = QuantizationModifier(
        config_groups={"group_0": {"targets": ["Linear"], **scheme}}, ignore=["lm_head"]
    )
    oneshot(model=peer, recipe=recipe)
    ours = load(tiny)
    rtn.alter(ours, rtn.Settings(bits=3, group_size=4), None, 0, torch.float32)
    tokens = torch.randint(500, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # The peer's layers quantize while they compute.
        torch.testing.assert_close(ours(tokens).logits, peer(tokens).logits, rtol=0, atol=1e-5)


def test_gptq_is_as_good_as_the_peer(tiny: Path, calibration: Path) -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    peer = load(tiny)
    scheme = {"weights": {"num_bits": 3, "symmetric": False, "strategy": "group", "group_size": 4}}
    recipe = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], **scheme}}, ignore=["lm_head"], actorder=None
    )
    oneshot(
        model=peer,
        dataset=data(calibration),
        recipe=recipe,
        num_calibration_samples=6,
        max_seq_length=32,
        sequential_targets=["LlamaDecoderLayer"],
    )
    base, ours, nearest = load(tiny), load(tiny), load(tiny)
    settings = gptq.Settings(bits=3, group_size=4)
    gptq.alter(ours, settings, Statistics(calibration), 0, torch.float32)
    rtn.alter(nearest, settings, None, 0, torch.float32)
    theirs, mine, plain = (divergence(base, model, calibration) for model in (peer, ours, nearest))
    # The peer propagates errors from block to block, we do not; both must beat rounding to nearest.
    assert mine < plain
    assert theirs < plain
    assert mine == pytest.approx(theirs, rel=0.5)


def test_the_peers_magnitude_modifier_still_changes_nothing(tiny: Path, calibration: Path) -> None:
    """When this fails after an upgrade, the note in hemorrhage.compress.magnitude can go."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import MagnitudePruningModifier

    peer = load(tiny)
    recipe = MagnitudePruningModifier(
        targets="re:.*proj$", init_sparsity=0.0, final_sparsity=0.5, start=0.0, end=1.0
    )
    oneshot(
        model=peer, dataset=data(calibration), recipe=recipe, num_calibration_samples=2, max_seq_length=32
    )
    for name, linear in linears_of(load(tiny)).items():
        assert torch.equal(peer.get_submodule(name).weight, linear.weight)
