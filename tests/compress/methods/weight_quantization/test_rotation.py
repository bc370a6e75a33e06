"""Rotations: orthogonal, the model's identity, the peer's equal, and what they are for: outliers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import rotation, rtn
from hemorrhage.compress.solvers.basis import find_stream, stream_basis
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import _widen_computed, load
from hemorrhage.models.experts import unfuse
from hemorrhage.models.formats.storage import formatted_layers
from hemorrhage.models.hadamard import constructible, factors, hadamard
from hemorrhage.models.hadamard import rotation as rotation_of
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests.calibration import calibrated
from tests.divergence import kl
from tests.families import FAMILIES, new_model
from tests.family_matrix.study import Study
from tests.family_matrix.study import plain as plain_model
from tests.layers import block_of, layer_of, logits_of

FAMILY_TOKENS = torch.randint(3, 500, (4, 24), generator=torch.Generator().manual_seed(1))

BEHIND = r"norm normalises what self_attn\.o_proj writes"
IMAGES = "what it makes of images is written to the stream"
REFUSED = {
    **dict.fromkeys(("olmo2", "olmo3", "glm4", "exaone4", "gemma2", "gemma3_text"), BEHIND),
    **dict.fromkeys(("gemma3", "llava", "qwen2_5_vl", "mistral3"), IMAGES),
    **dict.fromkeys(("bloom", "xglm"), "numbers that no layer holds are added to the embeddings, or a norm follows"),
    "opt-projected": "more to it than add what linear layers write",
    "zamba2": "can't be turned|share weights",
}

WIDTHS = [1, 2, 8, 43, 60, 64, 172, 576, 896]


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("rotation"))


def spec(**settings: Any) -> dict[str, Any]:
    return {"sweep": "s", "method": "rotation", "settings": settings, "seed": 0}


def random_tokens(vocabulary: int = 500, rows: int = 2) -> Tensor:
    return torch.randint(vocabulary, (rows, 48), generator=torch.Generator().manual_seed(0))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return logits_of(model, random_tokens(), use_cache=False)


def divergence(base: PreTrainedModel, other: PreTrainedModel) -> float:
    """Mean KL(base ‖ other), nats per token."""
    return kl(logits(base), logits(other))


def test_hadamard_matrices_are_such() -> None:
    orders = [order for order in range(1, 300) if constructible(order)]
    assert {1, 2, 4, 12, 20, 28, 36, 44, 60, 76, 108, 140, 148} <= set(orders)
    assert all(order < 3 or order % 4 == 0 for order in orders)
    for order in orders:
        matrix = hadamard(order)
        assert (matrix.abs() == 1).all()
        assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))
    with pytest.raises(ValueError, match="order 92"):
        hadamard(92)


def test_widths_of_models_are_products_of_small_hadamard_orders() -> None:
    assert factors(576) == (24, 24, True)
    assert factors(1536) == (32, 48, True)
    assert factors(14336) == (112, 128, True)
    assert factors(11008) == (86, 128, False)
    assert factors(172) == (4, 43, False)


@pytest.mark.parametrize("width", WIDTHS)
def test_rotations_are_orthogonal_and_undone(width: int) -> None:
    left, right, from_hadamard = factors(width)
    turn = rotation_of(5, left, right, from_hadamard=from_hadamard)
    matrix = turn.rotate(torch.eye(width))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width), rtol=0, atol=1e-5)
    x = torch.randn(3, 2 * width)
    torch.testing.assert_close(turn.rotate(x), x @ torch.block_diag(matrix, matrix), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turn.restore(turn.rotate(x)), x, rtol=1e-4, atol=1e-5)
    again = rotation_of(5, left, right, from_hadamard=from_hadamard)
    assert torch.equal(again.rotate(x), turn.rotate(x))
    if width > 8:
        other = rotation_of(6, left, right, from_hadamard=from_hadamard)
        assert (other.rotate(x) - turn.rotate(x)).abs().max() > 0.1
    if from_hadamard:
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, width**-0.5))


def rotate(model: PreTrainedModel, seed: int) -> None:
    """Turn ``model`` by R1 and R2 and round nothing."""
    with torch.no_grad():
        plan = rotation.plan_turns(model, seed)
        linears = linears_of(model)
        for name, linear in linears.items():
            if linear.bias is not None:
                linear.bias.copy_(plan.turns[name].bias(linear.bias, linear.weight))
            linear.weight.copy_(plan.turns[name].weight(linear.weight))
        rotation.turn_stream(model, plan, linears)


def small(kind: Any, **changes: Any) -> PreTrainedModel:
    """A random model with biases and norms that are not one."""
    content = {
        "vocab_size": 500,
        "hidden_size": 48,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "initializer_range": 0.2,
        **changes,
    }
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(kind(**content)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        (MistralConfig, {"tie_word_embeddings": True}),
        (Qwen2Config, {}),
        (Qwen3Config, {"tie_word_embeddings": True, "hidden_size": 52}),
    ],
)
def test_a_rotated_model_computes_what_it_did(kind: Any, changes: dict[str, Any]) -> None:
    model = small(kind, **changes)
    before = logits(model)
    weights = {name: linear.weight.detach().clone() for name, linear in linears_of(model).items()}
    rotate(model, seed=3)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-5 * before.abs().max().item())
    for name, linear in linears_of(model).items():
        assert not torch.allclose(linear.weight, weights[name], atol=1e-3), name
    assert model.config.tie_word_embeddings is False
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def dense_hadamard(turn: Any) -> Tensor:
    """``D (A ⊗ B)`` written out."""
    return torch.diag(turn.signs) @ torch.kron(turn.left, turn.right)


def test_a_blocks_weights_are_those_of_the_papers_figure(tiny: Path) -> None:
    base, model = load(tiny), load(tiny)
    plan = rotation.plan_turns(base, seed=1).turns
    rotate(model, seed=1)
    name = "model.layers.2"
    theirs, ours = layer_of(base, name), layer_of(model, name)
    one = dense_hadamard(plan[f"{name}.self_attn.q_proj"].inward)
    assert torch.allclose(one @ one.T, torch.eye(64), atol=1e-6)
    head = dense_hadamard(plan[f"{name}.self_attn.v_proj"].outward)
    assert head.shape == (8, 8)
    attention, mlp = (torch.diag(n.weight) for n in (theirs.input_layernorm, theirs.post_attention_layernorm))
    values, outputs = torch.block_diag(*[head] * 4), torch.block_diag(*[head] * 8)
    expected = {
        "self_attn.q_proj": theirs.self_attn.q_proj.weight @ attention @ one,
        "self_attn.k_proj": theirs.self_attn.k_proj.weight @ attention @ one,
        "self_attn.v_proj": values.T @ theirs.self_attn.v_proj.weight @ attention @ one,
        "self_attn.o_proj": one.T @ theirs.self_attn.o_proj.weight @ outputs,
        "mlp.gate_proj": theirs.mlp.gate_proj.weight @ mlp @ one,
        "mlp.up_proj": theirs.mlp.up_proj.weight @ mlp @ one,
        "mlp.down_proj": one.T @ theirs.mlp.down_proj.weight,
    }
    for layer, weight in expected.items():
        torch.testing.assert_close(layer_of(ours, layer).weight, weight, rtol=1e-4, atol=1e-5)
    embedding = base.model.embed_tokens.weight
    torch.testing.assert_close(model.model.embed_tokens.weight, embedding @ one, rtol=1e-4, atol=1e-5)
    last = torch.diag(base.model.norm.weight)
    torch.testing.assert_close(model.lm_head.weight, embedding @ last @ one, rtol=1e-4, atol=1e-5)
    assert (ours.input_layernorm.weight == 1).all()
    assert (model.model.norm.weight == 1).all()


@pytest.mark.parametrize("transform", ["quarot", "quip"])
def test_the_second_moment_is_that_of_the_turned_input(tiny: Path, transform: str) -> None:
    """What the layer behind a norm reads, turned: the loss of a change of weights stays what it was."""
    model = load(tiny)
    name = "model.layers.1.self_attn.v_proj"
    if transform == "quarot":
        turn = rotation.plan_turns(model, seed=0).turns[name]
    else:
        from hemorrhage.models.formats.rotated import build_rotation

        inward, outward = rotation.incoherence(linears_of(model), None, 0)[name]
        turn = rotation.Turn(build_rotation(inward), build_rotation(outward))
    weight = layer_of(model, name).weight.detach()
    x = torch.randn(200, 64) @ torch.randn(64, 64)
    moment = x.T @ x / 200
    change = 0.1 * torch.randn_like(weight)
    turned = turn.weight(weight + change) - turn.weight(weight)
    before = torch.trace(change @ moment @ change.T).item()
    after = torch.trace(turned @ turn.moment(moment) @ turned.T).item()
    assert after == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("transform", ["quarot", "quip"])
@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_checkpoints_read_back_and_eight_bits_lose_next_to_nothing(
    tiny: Path, calibration: Path, tmp_path: Path, transform: str, rounding: str
) -> None:
    out = tmp_path / "out"
    content = spec(transform=transform, rounding=rounding, bits=8, group_size=4)
    compress(out, "v", tiny, None, calibration, [], content)
    manifest = read_manifest(out)
    assert "failure" not in manifest
    assert manifest["layer_bits"] == pytest.approx(8 + 32 / 4 + 8 / 4, abs=0.2)
    base = load(tiny)
    assert 0 < divergence(base, load(out, base=tiny)) < 5e-4
    tensors, config = dict(Weights(out, tiny).items()), json.loads((out / "config.json").read_text())
    if transform == "quarot":
        # The price of rotating a model with tied embeddings.
        assert tensors["lm_head.weight"].shape == tensors["model.embed_tokens.weight"].shape
        assert config["tie_word_embeddings"] is False
        assert manifest["parameters"] == sum(p.numel() for p in base.parameters()) + 512 * 64
        assert "model.layers.0.self_attn.q_proj.weight_packed" in tensors
    else:
        assert "quantization_config" not in config
        assert manifest["parameters"] == sum(p.numel() for p in base.parameters())


def test_a_rotated_layer_is_its_formula(tiny: Path) -> None:
    base, model = load(tiny), load(tiny)
    settings = rotation.Settings(transform="quip", bits=3, group_size=4)
    rotation.alter(model, settings, Context(seed=7))
    forms = formatted_layers(model)
    assert set(forms) == set(linears_of(base))
    form: Any
    for name, form in list(forms.items())[:7]:
        weight = layer_of(base, name).weight.detach()
        outward, inward = (
            rotation_of(seed, left, right, from_hadamard=bool(kind)).rotate(torch.eye(left * right))
            for seed, left, right, kind in form.stored()["rotation"].tolist()
        )
        turned = outward.T @ weight @ inward
        rounded = form.rotated_weight()
        step = form.stored()["rotated_scale"].repeat_interleave(4, 1)
        assert ((turned - rounded).abs() <= step * (1 + 1e-3) + 1e-5).all()
        torch.testing.assert_close(form.dense(), outward @ rounded @ inward.T, rtol=1e-4, atol=1e-5)
        nearest = rtn.quantize(turned, 4, settings, torch.float32).dense()
        assert ((nearest - rounded).abs() < 1e-4).float().mean() > 0.99
        x = torch.randn(3, form.in_features)
        torch.testing.assert_close(form(x), x @ form.dense().T)


def test_layers_that_share_an_input_share_its_rotation(tiny: Path, calibration: Path) -> None:
    model = load(tiny)
    settings = rotation.Settings(transform="quip", rounding="gptq", bits=3, group_size=4)
    rotation.alter(model, settings, Context(Statistics(calibration)))
    attention = block_of(model, 0).self_attn
    origins = [layer_of(attention, n).stored()["rotation"] for n in ("q_proj", "k_proj", "v_proj")]
    assert torch.equal(origins[0][1], origins[1][1])
    assert torch.equal(origins[0][1], origins[2][1])
    assert not torch.equal(origins[0][0], origins[1][0])


def planted(tiny: Path, factor: float = 30) -> PreTrainedModel:
    """The model with a channel that is large in the weights of every layer of the blocks.

    Behind a norm nothing changes by that: its weight is as much smaller.
    """
    model = load(tiny)
    with torch.no_grad():
        stack: Any = blocks(model)
        for block in stack:
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight[7] /= factor
            attention, mlp = block.self_attn, block.mlp
            for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                reader.weight[:, 7] *= factor
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight[:, 5] *= factor**0.5
    return model


def peak(weight: Tensor) -> float:
    """Greatest absolute weight of a row over its root mean square, mean over rows."""
    return (weight.abs().amax(1) / weight.square().mean(1).sqrt()).mean().item()


def test_a_rotation_flattens_outliers(tiny: Path) -> None:
    model = load(tiny)
    spun = rotation.plan_turns(model, 0).turns
    quip = {
        name: rotation.Turn(
            rotation_of(*inward[:3], from_hadamard=inward[3]), rotation_of(*outward[:3], from_hadamard=outward[3])
        )
        for name, (inward, outward) in rotation.incoherence(linears_of(model), None, 0).items()
    }
    for name, linear in linears_of(model).items():
        weight = linear.weight.detach().clone()
        weight[:, 5] = 10 * weight.square().mean().sqrt()
        assert peak(quip[name].weight(weight)) < 0.8 * peak(weight), name
        if not name.endswith("down_proj"):  # its input is turned by R4, which is none of the offline ones
            assert peak(spun[name].weight(weight)) < 0.8 * peak(weight), name


@pytest.mark.parametrize("transform", ["quarot", "quip"])
def test_outliers_hurt_less_after_rotation(tiny: Path, transform: str) -> None:
    base, plain, turned = planted(tiny), planted(tiny), planted(tiny)
    grid = {"bits": 3, "group_size": "channel"}
    rtn.alter(plain, rtn.Settings.model_validate(grid), Context())
    rotation.alter(turned, rotation.Settings.model_validate({**grid, "transform": transform}), Context())
    assert divergence(base, turned) < 0.5 * divergence(base, plain)


def peer_of(tiny: Path, modifier: Any, calibration: Path) -> PreTrainedModel:
    from llmcompressor.entrypoints.oneshot import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    tokens = load_file(calibration / "tokens.safetensors")["tokens"].tolist()
    weights = {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 4}
    peer = load(tiny)
    oneshot(
        model=peer,
        dataset=Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * len(t) for t in tokens]}),
        recipe=[
            modifier,
            QuantizationModifier(
                config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]
            ),
        ],
        num_calibration_samples=2,
        max_seq_length=32,
        pipeline="datafree",
    )
    return peer


@pytest.mark.parametrize("transform", ["quarot", "quip"])
def test_as_good_as_the_peer(tiny: Path, calibration: Path, transform: str) -> None:
    pytest.importorskip("llmcompressor")
    from llmcompressor.modifiers import transform as transforms

    modifiers: Any = transforms

    modifier = (
        modifiers.SpinQuantModifier(rotations=["R1", "R2"], transform_type="random-hadamard")
        if transform == "quarot"
        else modifiers.QuIPModifier(rotations=["v", "u"], transform_type="random-hadamard")
    )
    base, ours = load(tiny), load(tiny)
    settings = rotation.Settings.model_validate({"transform": transform, "bits": 4, "group_size": 4})
    rotation.alter(ours, settings, Context())
    mine, theirs = divergence(base, ours), divergence(base, peer_of(tiny, modifier, calibration))
    assert 0 < mine < 1.5 * theirs


def test_settings(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    spun = rotation.Settings(transform="quarot", bits=4, group_size=64)
    assert spun.label == "4 bit, groups of 64, quarot, rtn"
    assert spun.statistics == ()
    assert spun.check({**config, "intermediate_size": 192}) is None
    assert spun.check(config) == "group_size 64 does not divide the model's intermediate_size of 172"
    quip = rotation.Settings(transform="quip", bits=3, rounding="gptq", group_size="channel")
    assert (quip.curve, quip.statistics) == ("per channel, quip, gptq", ("hessian",))
    assert quip.check({**config, "model_type": "mamba"}) is None
    with pytest.raises(ValueError, match="keep_zeros has to be false"):
        rotation.Settings(transform="quip", bits=3, keep_zeros=True)
    with pytest.raises(ValueError, match="'quarot' or 'quip'"):
        rotation.Settings.model_validate({"transform": "dct", "bits": 3})
    with pytest.raises(ValueError, match="spinquant is now quarot"):
        rotation.Settings.model_validate({"transform": "spinquant", "bits": 3})


FAST = ("opt", "gpt2", "cohere", "falcon", "mpt", "gemma", "granite", "phi3", "deepseek_v3", "gpt_oss", "qwen3_next")
"""Norms with means, biases and offsets; learned positions; parallel blocks; fused layers; experts; gated values."""


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(n, marks=pytest.mark.families) for n in FAMILIES if n not in FAST)]
)
def test_a_family_rotated_in_float32_computes_what_it_did_or_is_refused(name: str) -> None:
    """Beside transformers' model of the same numbers, experts in one tensor and all."""
    plain, model = new_model(name), new_model(name)
    for each in (plain, model):
        _widen_computed(each)
        each.float()
    unfuse(model)
    expected = plain(FAMILY_TOKENS, use_cache=False).logits
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if name in REFUSED:
        with pytest.raises(RefusedError, match=REFUSED[name]):
            rotate(model, seed=2)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        return
    rotate(model, seed=2)
    logits = model(FAMILY_TOKENS, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    stream = find_stream(model)
    for writer in stream.writers:
        assert not torch.allclose(model.get_parameter(f"{writer}.weight"), before[f"{writer}.weight"], atol=1e-3)
    for norm in stream.norms.values():
        assert (norm.gain == 1).all()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is not embedding.weight


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
@pytest.mark.parametrize("name", ["opt", "stablelm", "phi3"])
def test_rotated_families_in_16_bits_from_disk(name: str, rounding: str, tmp_path: Path) -> None:
    """Through the step; biases behind norms with one, norms that keep theirs, fused layers."""
    study = Study(name, tmp_path)
    content = spec(transform="quarot", rounding=rounding, bits=8, group_size="channel")
    compress(tmp_path / "out", "v", study.base, None, study.calibration, [], content)
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest["failure"]
    assert kl(study.logits, logits_of(load(tmp_path / "out", base=study.base), study.tokens, use_cache=False)) < 1e-3
    export(tmp_path / "out", tmp_path / "exported", "dense", study.base)
    # Multiplied out, the weights are rounded to bfloat16 once more.
    assert kl(study.logits, logits_of(plain_model(tmp_path / "exported"), study.tokens, use_cache=False)) < 1e-3


def test_a_basis_that_keeps_the_mean_flattens_outliers_too() -> None:
    width = 768
    weight = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    weight[:, 5] *= 30
    turned = stream_basis(width, True, 3).rotate(weight)
    torch.testing.assert_close(turned.mean(1), weight.mean(1), rtol=1e-3, atol=1e-4)
    assert peak(turned) < 0.3 * peak(weight)


def test_values_that_are_clamped_or_gated_are_left_in_their_basis() -> None:
    for name in ("olmo", "qwen3_next", "gpt_oss"):
        model = new_model(name)
        unfuse(model)
        plan = rotation.plan_turns(model, 0)
        assert all(turn.outward is None for key, turn in plan.turns.items() if key.endswith("v_proj")), name
    plan = rotation.plan_turns(new_model("gpt_neox"), 0)
    turn = plan.turns["gpt_neox.layers.0.attention.query_key_value"]
    # Of each head's queries, keys and values these are the last third.
    assert turn.rows is not None
    assert turn.rows.tolist() == [60 * head + 40 + place for head in range(4) for place in range(20)]


def test_a_norm_behind_what_a_block_writes_is_refused_before_anything_changes(tiny: Path) -> None:
    model = load(tiny)
    attention = block_of(model, 1).self_attn
    attention.o_proj = torch.nn.Sequential(attention.o_proj, block_of(load(tiny), 1).input_layernorm)
    settings = rotation.Settings(transform="quarot", bits=8, group_size=4)
    with pytest.raises(RefusedError, match=r"layers\.1.*o_proj\.1 normalises what self_attn\.o_proj\.0 writes"):
        settings.check_model(model)
