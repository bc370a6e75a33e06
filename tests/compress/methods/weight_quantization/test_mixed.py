"""Mixed precision: the allocation against brute force, the estimates against measured damage, the budget on disk."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel, Qwen2Config

from hemorrhage.calibrate.gradients import gradients
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.calibrate.statistics import collect
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import mixed, rtn
from hemorrhage.compress.solvers.checkpoint_size import checkpoint_bytes
from hemorrhage.models.checkpoint import load
from hemorrhage.models.engine_table import TRANSFORMERS
from hemorrhage.models.engines import answer
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest, write_manifest
from hemorrhage.tools.export import export
from tests.calibration import calibrated
from tests.divergence import divergence
from tests.layers import generate, layer_of

WINDOWS, LENGTH = 24, 64


@pytest.fixture(scope="module")
def text(tiny: Path) -> Tensor:
    """Windows that the tiny model itself wrote: their labels are drawn from its own predictions."""
    model = load(tiny)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begin = torch.full((2 * WINDOWS, 1), model.config.bos_token_id)
        sizes = {"min_new_tokens": LENGTH - 1, "max_new_tokens": LENGTH - 1}
        return generate(model, begin, do_sample=True, top_k=0, pad_token_id=0, **sizes)


@pytest.fixture(scope="module")
def folders(tiny: Path, text: Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A calibration folder of that text, and one of gradients."""
    parent = tmp_path_factory.mktemp("mixed")
    calibration = parent / "calibration"
    calibration.mkdir()
    save_file({"tokens": text[:WINDOWS].int()}, calibration / "tokens.safetensors")
    found = collect(load(tiny), text[:WINDOWS], calibration)
    write_manifest(calibration, corpora={"own": "ab"}, tokens=text[:WINDOWS].numel(), seed=0, **found)
    gradients(parent / "gradients", tiny, calibration, {"part": "loss"})
    return calibration, parent / "gradients"


@pytest.fixture(scope="module")
def statistics(folders: tuple[Path, Path]) -> Statistics:
    return Statistics(folders[0], {"loss": folders[1]})


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A bfloat16 Qwen2 of odd sizes that groups of 32 divide, one KV head, biases; its calibration and gradients."""
    parent = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    for value in model.parameters():
        value.data = torch.randn_like(value) / 8
    model.bfloat16().save_pretrained(parent / "base")
    calibration = calibrated(parent / "base", parent)
    gradients(parent / "gradients", parent / "base", calibration, {"part": "loss"})
    return parent / "base", calibration, parent / "gradients"


@pytest.mark.parametrize("seed", range(6))
def test_the_allocation_is_that_of_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(5, 4, generator=generator).sort(1, descending=seed % 2 == 0).values.tolist()
    sizes = torch.randint(1, 40, (5, 4), generator=generator).sort(1).values.tolist()
    choices = list(itertools.product(range(4), repeat=5))
    spent = {c: sum(sizes[i][j] for i, j in enumerate(c)) for c in choices}
    lost = {c: sum(losses[i][j] for i, j in enumerate(c)) for c in choices}
    least = min(spent.values())
    for limit in (least, least + 7, least + 40, max(spent.values())):
        best = min(lost[c] for c in choices if spent[c] <= limit)
        chosen = tuple(mixed.allocate(losses, sizes, limit))
        assert spent[chosen] <= limit
        assert lost[chosen] == pytest.approx(best)
    with pytest.raises(ValueError, match=f"take {least} bits, the budget allows {least - 1}"):
        mixed.allocate(losses, sizes, least - 1)


def test_a_large_allocation_wastes_little_of_its_budget() -> None:
    """Sizes without a common divisor, and more steps than are told apart."""
    generator = torch.Generator().manual_seed(0)
    sizes = (torch.rand(210, 6, generator=generator) * 1e6).cumsum(1).long()
    losses = 1 / (1 + torch.rand(210, 6, generator=generator)).cumsum(1)
    limit = int(sizes.float().mean(1).sum())
    chosen = torch.tensor(mixed.allocate(losses.tolist(), sizes.tolist(), limit)).unsqueeze(1)
    assert 0.998 * limit < sizes.gather(1, chosen).sum() <= limit
    # Below what any allocation can reach: a mixture of two choices for one item at most (Lagrangian bound).
    bound = max(
        (losses + price * sizes).amin(1).sum().item() - price * limit for price in torch.logspace(-9, -5, 200).tolist()
    )
    assert losses.gather(1, chosen).sum().item() < bound + 0.005 * abs(bound)


def test_the_estimate_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    change, X = torch.randn(3, 5, generator=generator), torch.randn(20, 5, generator=generator)
    output = torch.rand(3, generator=generator)
    literal = 0.0
    for x in X:
        for i in range(3):
            literal += 0.5 * output[i].item() * (change[i] @ x).item() ** 2 / len(X)
    assert mixed.divergence(change, X.T @ X / len(X), output) == pytest.approx(literal, rel=1e-5)


@pytest.mark.parametrize("bits", [3])
def test_estimates_are_the_measured_divergence(tiny: Path, text: Tensor, statistics: Statistics, bits: int) -> None:
    """Layer by layer, each rounded alone: in the right order, and in nats."""
    base, model = load(tiny), load(tiny)
    estimated, measured = [], []
    with torch.no_grad():
        for first, names in statistics.shared().items():
            moment = statistics.second_moment(first)
            for name in names:
                weight = layer_of(model, name).weight
                before = weight.clone()
                weight.copy_(rtn.quantize(before, 4, rtn.Settings(bits=bits, group_size=4), torch.float32).dense())
                estimated.append(mixed.divergence(weight - before, moment, statistics.output_gradient(name)))
                measured.append(divergence(base, model, text[WINDOWS:]))
                weight.copy_(before)
    assert spearmanr(estimated, measured).statistic > 0.85
    assert sum(estimated) == pytest.approx(sum(measured), rel=0.4)


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_between_two_uniform_widths_it_is_below_their_line_and_below_its_control(
    tiny: Path, text: Tensor, statistics: Statistics, rounding: Any
) -> None:
    """The line goes through the logarithms of the divergences of 4 and 5 bits, at the bits that each stores."""
    from hemorrhage.compress.methods.weight_quantization import gptq

    base, measured = load(tiny), []
    method = {"rtn": rtn, "gptq": gptq}[rounding]
    for bits in (4, 5):
        uniform = load(tiny)
        method.alter(uniform, method.Settings(bits=bits, group_size="channel"), Context(statistics))
        measured.append((stored(uniform), math.log(divergence(base, uniform, text[WINDOWS:]))))
    (few, high), (many, low) = measured
    budget = few + (many - few) / 4

    def of(*, shuffled: bool) -> float:
        model = load(tiny)
        settings = mixed.Settings(budget=budget, group_size="channel", rounding=rounding, shuffled=shuffled)
        mixed.alter(model, settings, Context(statistics))
        assert 0.98 * budget < stored(model) <= budget
        return divergence(base, model, text[WINDOWS:])

    ours = of(shuffled=False)
    assert ours < math.exp(0.75 * high + 0.25 * low)
    assert ours < 0.8 * of(shuffled=True)


def stored(model: PreTrainedModel) -> float:
    """Bits per weight that the packed layers of ``model`` take."""
    packed: list[Any] = [module for module in model.modules() if hasattr(module, "stored")]
    bits: int = sum(8 * value.nbytes for module in packed for value in module.stored().values())
    return bits / sum(int(module.parameters_count) for module in packed)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_checkpoint_of_several_widths_reads_back_and_keeps_its_budget(
    tiny: Path, folders: tuple[Path, Path], tmp_path: Path, symmetric: bool
) -> None:
    settings: dict[str, Any] = {"budget": 12.3, "group_size": 4, "symmetric": symmetric}
    spec = {"sweep": "s", "method": "mixed", "settings": settings, "seed": 0}
    compress(tmp_path / "out", "v", tiny, None, folders[0], [folders[1]], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest
    tensors = dict(Weights(tmp_path / "out", tiny).items())
    bits: int = sum(8 * value.nbytes for name, value in tensors.items() if "_proj." in name)
    weights = sum(module.weight.numel() for module in linears_of(load(tiny)).values())
    assert 0.995 * 12.3 < bits / weights <= 12.3
    words = {
        name: tensors[f"{name}.weight_packed"].shape[1] * 32 / linear.in_features
        for name, linear in linears_of(load(tiny)).items()
    }
    assert len({round(width) for width in words.values()}) > 1


def test_too_small_a_budget_is_refused(tiny: Path, statistics: Statistics) -> None:
    config = load(tiny).config.to_dict()
    problem = mixed.Settings(budget=3, group_size=4).check(config)
    # Two bits, a float32 scale and a zero point of two bits for four weights; eight at the other end.
    assert problem == "budget 3 must lie between 10.5 and 18 for these widths"
    assert mixed.Settings(budget=11, group_size=4).check(config) is None
    assert "group_size 64 does not divide" in str(mixed.Settings(budget=4, group_size=64).check(config))
    with pytest.raises(ValueError, match="the smallest choices take"):
        mixed.alter(load(tiny), mixed.Settings(budget=10.5, group_size=4), Context(statistics))


def schemes(folder: Path) -> dict[str, int]:
    """Bits of every layer that config.json of a checkpoint names, one group for each width."""
    groups = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
    return {name: group["weights"]["num_bits"] for group in groups for name in group["targets"]}


@pytest.mark.parametrize(("budget", "embeddings"), [("500 kB", None), ("0.6 MB", None), ("500 kB", 4)])
def test_a_budget_in_bytes_is_kept_by_the_whole_file(
    tiny: Path, folders: tuple[Path, Path], tmp_path: Path, budget: str, embeddings: int | None
) -> None:
    settings: dict[str, Any] = {"budget": budget, "group_size": 4, "embeddings": embeddings}
    spec = {"sweep": "s", "method": "mixed", "settings": settings, "seed": 0}
    compress(tmp_path / "out", "v", tiny, None, folders[0], [folders[1]], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest
    allowed = mixed.Settings.model_validate(settings).budget_bytes
    assert allowed == {"500 kB": 500_000, "0.6 MB": 600_000}[budget]
    # A group of layers is a large part of so small a model.
    assert 0.95 * allowed < manifest["disk_bytes"] <= allowed
    assert manifest["severity"] == pytest.approx(manifest["layer_bits"])
    of_layer = schemes(tmp_path / "out")
    assert len(set(of_layer.values())) > 1
    for fused in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        for block in range(load(tiny).config.num_hidden_layers):
            assert len({of_layer[f"model.layers.{block}.{name}"] for name in fused}) == 1


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_formats_mix_and_other_programs_read_them(wide: tuple[Path, Path, Path], tmp_path: Path, rounding: str) -> None:
    """Integers, FP8, NVFP4, MXFP4 and layers as they are in one bfloat16 checkpoint."""
    base, calibration, part = wide
    formats = ["nvfp4", "mxfp4", "fp8", "dense"]
    settings: dict[str, Any] = {
        "budget": 7.5,
        "widths": [4],
        "formats": formats,
        "group_size": 16,
        "rounding": rounding,
    }
    spec = {"sweep": "s", "method": "mixed", "settings": settings, "seed": 0}
    compress(tmp_path / "out", "v", base, None, calibration, [part], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest
    dense = load(base, "stored")
    linears = linears_of(dense)
    biases = sum(8 * linear.bias.nbytes for linear in linears.values() if linear.bias is not None)
    layer_bits = manifest["layer_bits"] - biases / sum(linear.weight.numel() for linear in linears.values())
    assert 0.97 * 7.5 < layer_bits <= 7.5
    ours = load(tmp_path / "out", base=base)
    verify(ours, tmp_path / "out")
    quantization = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    kinds = {
        name: (group["format"], group["weights"].get("group_size"))
        for group in quantization["config_groups"].values()
        for name in group["targets"]
    }
    assert len(set(kinds.values())) > 1
    assert quantization["format"] == "mixed-precision"
    for name, linear in linears.items():
        is_same = torch.equal(layer_of(ours, name).weight, linear.weight.float())
        assert (name in kinds) != is_same
        assert (name in quantization["ignore"]) == is_same
        for fused in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            if name.endswith(fused):
                prefix = name.rpartition(".")[0]
                assert len({kinds.get(f"{prefix}.{other}") for other in fused}) == 1
    names = answer(json.loads((tmp_path / "out" / "config.json").read_text())).names
    assert names == "vLLM, transformers"
    export(tmp_path / "out", tmp_path / "packed", "packed", base)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16)
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        theirs(tokens)
    for name in linears:
        assert torch.equal(layer_of(theirs, name).weight, layer_of(ours, name).weight.bfloat16()), name


def test_the_experts_of_a_block_are_stored_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, num_local_experts=3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    for value in model.parameters():
        value.data = torch.randn_like(value) / 8
    model.bfloat16().save_pretrained(tmp_path / "base")
    calibration = calibrated(tmp_path / "base", tmp_path)
    gradients(tmp_path / "gradients", tmp_path / "base", calibration, {"part": "loss"})
    # So much that some experts get more bits than others.
    settings: dict[str, Any] = {"budget": 5.5, "widths": [3, 4, 8], "group_size": 16, "symmetric": True}
    spec = {"sweep": "s", "method": "mixed", "settings": settings, "seed": 0}
    compress(tmp_path / "out", "v", tmp_path / "base", None, calibration, [tmp_path / "gradients"], spec)
    assert "failure" not in read_manifest(tmp_path / "out")
    of_layer = schemes(tmp_path / "out")
    of_experts = [
        {bits for name, bits in of_layer.items() if name.startswith(f"model.layers.{block}.block_sparse_moe.experts.")}
        for block in range(3)
    ]
    assert [len(bits) for bits in of_experts] == [1, 1, 1]
    assert len(set().union(*of_experts)) > 1
    given = answer(json.loads((tmp_path / "out" / "config.json").read_text()))
    assert given.names == "vLLM"
    assert (given.refusals or {})[TRANSFORMERS] == "it reads experts of one grid, and these have several"


@pytest.mark.parametrize("formats", [["fp8", "dense"], ["nvfp4", "mxfp8", "fp8_tensor"]])
def test_a_budget_in_bytes_counts_every_format(
    wide: tuple[Path, Path, Path], tmp_path: Path, formats: list[str]
) -> None:
    base, calibration, part = wide
    model = load(base, "stored")
    options = mixed.Settings.model_validate({"budget": 8, "formats": formats}).options
    sizes = [checkpoint_bytes(model, dict.fromkeys(linears_of(model), option)) for option in options]
    budget = (min(sizes) + max(sizes)) // 2000
    spec = {"sweep": "s", "method": "mixed", "settings": {"budget": f"{budget} kB", "formats": formats}, "seed": 0}
    compress(tmp_path / "out", "v", base, None, calibration, [part], spec)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest
    assert 0.85 * 1000 * budget < manifest["disk_bytes"] <= 1000 * budget


def test_bytes_that_no_choice_fits_are_refused(tiny: Path) -> None:
    model = load(tiny)
    assert mixed.Settings(budget="1 KiB", group_size=4).check(model.config.to_dict()) is None
    for budget in ("1 KiB", "1.5 GiB"):
        with pytest.raises(RefusedError, match=f"budget {budget} must lie between 0.* MB and .* MB for these widths"):
            mixed.Settings(budget=budget, group_size=4).check_model(model)


def test_settings() -> None:
    settings = mixed.Settings(budget=3.5, group_size=64, rounding="gptq")
    assert settings.statistics == ("hessian", "gradients")
    assert settings.severity == 3.5
    assert settings.label == "3.5 bits on average, mixed 2, 3, 4, 5, 6, 8, groups of 64, gptq"
    assert mixed.Settings.model_validate({"budget": 3, "widths": [2, 4]}).widths == (2, 4)
    in_bytes = mixed.Settings(budget="90 MB", group_size=64)
    assert (in_bytes.budget_bytes, in_bytes.severity) == (90_000_000, 0)
    assert in_bytes.label == "at most 90 MB, mixed 2, 3, 4, 5, 6, 8, groups of 64, rtn"
    assert in_bytes.identity == mixed.Settings(budget=4.5, group_size=64).identity
    assert mixed.Settings(budget="1.5GiB").budget_bytes == 3 * 2**29
    formats = mixed.Settings.model_validate({"budget": 6, "formats": ["nvfp4", "fp8", "dense"]})
    assert formats.widths == ()
    assert formats.label == "6 bits on average, mixed, nvfp4, fp8, dense, rtn"
    assert [option and option.format for option in formats.options] == ["nvfp4", "fp8", None]
    assert mixed.Settings.model_validate(formats.model_dump()) == formats
    for wrong in (
        {"budget": "90 Mb"},
        {"budget": 6, "formats": ["fp8"]},
        {"budget": 6, "formats": ["fp8", "fp8"]},
        {"budget": 6, "formats": ["fp8", "int9"]},
        {"budget": 3, "widths": [4, 2]},
        {"budget": 3, "widths": [4]},
        {"budget": 2},
        {"budget": 3, "bits": 3},
    ):
        with pytest.raises(ValueError, match="validation error"):
            mixed.Settings.model_validate(wrong)
