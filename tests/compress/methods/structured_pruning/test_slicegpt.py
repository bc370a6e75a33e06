"""Slices of the residual stream: the identity, the dense model with projections put in, and subspaces."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.structured_pruning import slicegpt
from hemorrhage.compress.solvers.basis import find_stream
from hemorrhage.decode.generation import forward
from hemorrhage.evaluate.language import hidden_states
from hemorrhage.models import blockwise
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import _widen_computed, load
from hemorrhage.models.experts import unfuse
from hemorrhage.models.head import head_of
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.reload import verify
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.divergence import kl
from tests.families import new_model
from tests.family_matrix.page import committed
from tests.family_matrix.study import Study
from tests.layers import block_of, generate, logits_of
from tests.whole import whole

TOKENS = torch.randint(500, (2, 40), generator=torch.Generator().manual_seed(0))
ROTATIONS = ("block", "model")


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("slicegpt"))


class Windows(Statistics):
    """Calibration windows that lie in no folder."""

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows

    def tokens(self) -> Tensor:
        return self.windows


def sliced(model: Any, statistics: Statistics, seed: int = 0, **settings: Any) -> Any:
    model = load(model) if isinstance(model, Path) else model
    slicegpt.alter(model, slicegpt.Settings(**settings), Context(statistics, seed))
    return model


def made(config: Any, seed: int = 0) -> Any:
    """A random model whose norms and biases are not those of its initialisation."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.copy_(0.5 + torch.rand_like(value))
            elif name.endswith("bias"):
                value.copy_(torch.randn_like(value) * 0.1)
    return model


SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-2,
}
KINDS = [
    LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    MistralConfig(**SMALL, sliding_window=16),
    Qwen2Config(**SMALL, tie_word_embeddings=True),
    Qwen3Config(**SMALL, head_dim=24),
]
CASES = [
    pytest.param(config, rotation, id=f"{config.model_type}-{rotation}")
    for config in KINDS
    for rotation in ROTATIONS
    if (config.model_type, rotation) != ("qwen3", "model")
]


def logits(model: PreTrainedModel, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return logits_of(model, tokens, use_cache=False).float()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("basis", ["pca", "random"])
def test_nothing_removed_changes_nothing(tiny: Path, calibration: Path, rotation: str, basis: str) -> None:
    model = sliced(tiny, Statistics(calibration), removed=0.0, rotation=rotation, basis=basis)
    assert close(logits(model), logits(load(tiny)))


@pytest.mark.parametrize(("config", "rotation"), CASES)
def test_families_biases_and_epsilon(config: Any, rotation: str) -> None:
    model = made(config)
    expected = logits(model)
    assert close(logits(sliced(model, Windows(TOKENS), removed=0.0, rotation=rotation)), expected)


def literal(
    model: Any, windows: Tensor, kept: int, turns: list[Tensor] | None
) -> tuple[Callable[[Tensor], Tensor], Any]:
    """The dense model in float64 with a projection on ``kept`` directions in front of every norm.

    Without ``turns`` they are found from ``windows``, each behind the projections before it. Returns what gives
    logits, and the bases.
    """
    model = model.double()
    decoder = model.get_decoder()

    def run(tokens: Tensor, given: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        used: list[Tensor] = []

        def project(x: Tensor) -> Tensor:
            if given is None:
                moment: Any = sum(torch.outer(row, row) for row in x.flatten(0, 1))
                moment += 0.01 * moment.diagonal().mean() * torch.eye(len(moment))
                values, vectors = torch.linalg.eigh(moment)
                used.append(vectors[:, values.argsort(descending=True)[:kept]])
            else:
                used.append(given[len(used)])
            return x @ used[-1] @ used[-1].T

        x = decoder.embed_tokens(tokens)
        places = torch.arange(tokens.shape[1])[None]
        arguments = {"position_embeddings": decoder.rotary_emb(x, places), "attention_mask": None}
        for block in decoder.layers:
            x = project(x)
            x = x + block.self_attn(hidden_states=block.input_layernorm(x), **arguments)[0]
            x = project(x)
            x = x + block.mlp(block.post_attention_layernorm(x))
        return model.lm_head(decoder.norm(project(x))), used

    with torch.no_grad():
        found = turns or run(windows, None)[1]

    def answer(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return run(tokens, found)[0]

    return answer, found


def absolute(x: Tensor) -> Tensor:
    """Eigenvectors have no sign."""
    return x.double().abs()


@pytest.mark.parametrize("removed", [0.2, 0.5])
def test_blocks_are_the_dense_model_with_projections(removed: float) -> None:
    windows = torch.randint(500, (4, 32), generator=torch.Generator().manual_seed(1))
    config = LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)
    kept = {0.2: 32, 0.5: 24}[removed]
    answer, turns = literal(made(config), windows, kept, None)
    model = sliced(made(config), Windows(windows), removed=removed)
    assert close(logits(model).double(), answer(TOKENS), 1e-3)
    dense = made(config)
    old, new = block_of(dense, 0), block_of(model, 0)
    first, middle, last = turns[:3]
    gain = old.input_layernorm.weight.double()
    for found, expected in (
        (model.get_input_embeddings().weight, dense.get_input_embeddings().weight.double() @ first),
        (new.self_attn.q_proj.weight, old.self_attn.q_proj.weight.double() @ torch.diag(gain) @ first),
        (new.attention_shortcut, first.T @ middle),
        (new.self_attn.o_proj.weight, middle.T @ old.self_attn.o_proj.weight.double()),
        (new.self_attn.o_proj.bias, middle.T @ old.self_attn.o_proj.bias.double()),
        (new.mlp_shortcut, middle.T @ last),
        (new.mlp.down_proj.weight, last.T @ old.mlp.down_proj.weight.double()),
        (
            model.get_output_embeddings().weight,
            dense.lm_head.weight.double() @ torch.diag(dense.model.norm.weight.double()) @ turns[-1],
        ),
    ):
        assert found.shape == expected.shape
        assert close(absolute(found), absolute(expected), 1e-3)


def test_one_basis_is_the_dense_model_with_one_projection() -> None:
    windows = torch.randint(500, (4, 32), generator=torch.Generator().manual_seed(1))
    dense = made(KINDS[0])
    seen: list[Tensor] = []
    stack: Any = blocks(dense)
    norms = [dense.model.norm, *(norm for b in stack for norm in (b.input_layernorm, b.post_attention_layernorm))]
    hooks = [norm.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1).double())) for norm in norms]
    logits(dense, windows)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2 * 3 + 1
    stream = torch.cat(seen)
    turn = torch.linalg.eigh(stream.T @ stream).eigenvectors.flip(1)[:, :24]
    answer, _ = literal(dense, windows, 24, [turn] * len(seen))
    model = sliced(made(KINDS[0]), Windows(windows), removed=0.4, rotation="model")
    assert model.config.hidden_size == 24
    assert close(logits(model).double(), answer(TOKENS), 1e-3)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_stream_that_lies_in_a_subspace_is_sliced_for_nothing(rotation: str) -> None:
    model = made(LlamaConfig(**SMALL))
    inside = torch.linalg.qr(torch.randn(48, 24, generator=torch.Generator().manual_seed(2))).Q
    project = inside @ inside.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ project)
        stack: Any = blocks(model)
        for block in stack:
            for writer in (block.self_attn.o_proj, block.mlp.down_proj):
                writer.weight.copy_(project @ writer.weight)
    expected = logits(model)
    slices = {
        basis: logits(sliced(copy.deepcopy(model), Windows(TOKENS), removed=0.5, rotation=rotation, basis=basis))
        for basis in ("pca", "random")
    }
    assert close(slices["pca"], expected, 1e-3)
    assert not close(slices["random"], expected, 1e-1)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_damage_grows_with_the_slice_and_a_random_basis_is_worse(tiny: Path, rotation: str) -> None:
    tokens = _stories(tiny)
    base, statistics = logits(load(tiny), tokens[:4]), Windows(tokens[4:])

    def damage(removed: float, **settings: Any) -> float:
        return kl(base, logits(sliced(tiny, statistics, removed=removed, rotation=rotation, **settings), tokens[:4]))

    losses = [damage(removed) for removed in (0.0, 0.125, 0.25, 0.5, 0.75)]
    assert losses == sorted(losses)
    assert losses[0] < 1e-6 < 1e-2 < losses[1]
    assert damage(0.25, basis="random") > 1.5 * losses[2]


def _stories(tiny: Path) -> Tensor:
    """Text that the model writes itself: int64 [16, 96]."""
    model = load(tiny)
    torch.manual_seed(0)
    start = torch.full((16, 1), 1)
    return generate(model, start, do_sample=True, min_new_tokens=95, max_new_tokens=95, pad_token_id=0)


def spec(removed: float, **settings: Any) -> dict[str, Any]:
    settings = {"removed": removed, **settings}
    return {"sweep": "s", "method": "slicegpt", "settings": settings, "seed": 0}


def test_a_checkpoint_with_a_basis_per_block(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(out, "v", tiny, None, calibration, [], spec(0.5))
    manifest = read_manifest(out)
    assert "failure" not in manifest
    config = json.loads((out / "config.json").read_text())
    assert config["hemorrhage"] == {"form": "sliced", "kept": 32}
    assert (config["hidden_size"], config["tie_word_embeddings"]) == (64, False)
    model, stored = load(out, base=tiny), load(out, "stored", base=tiny)
    verify(model, out)
    assert model.dtype == stored.dtype == torch.float32
    assert load(out, "bfloat16", base=tiny).dtype == torch.bfloat16
    # q, o: 64 rows; k, v: 32; three matrices of the MLP: 172; two shortcuts; embedding and head.
    of_blocks = 5 * (32 * (2 * 64 + 2 * 32 + 3 * 172) + 2 * 32 * 32)
    before = 5 * (64 * (2 * 64 + 2 * 32 + 3 * 172) + 2 * 64)
    assert manifest["parameters"] == of_blocks + 2 * 512 * 32
    assert manifest["severity"] == pytest.approx(1 - of_blocks / before)
    assert (manifest["statistics"], manifest["effective_bits"]) == ("errors propagated", 32)
    tensors = dict(Weights(out, tiny).items())
    assert sum(value.numel() for value in tensors.values()) == manifest["parameters"]
    assert sorted(linears_of(model)) == sorted(linears_of(load(tiny)))
    with torch.inference_mode():
        hidden = blockwise.forward_blockwise(model, TOKENS)
    assert close(hidden, hidden_states(model, TOKENS))
    assert close(head_of(model).logits(hidden), logits(model))


def test_one_basis_is_a_checkpoint_like_any_other(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(out, "v", tiny, None, calibration, [], spec(0.25, rotation="model"))
    manifest = read_manifest(out)
    assert "failure" not in manifest
    config = json.loads((out / "config.json").read_text())
    assert "hemorrhage" not in config
    assert (config["hidden_size"], config["head_dim"]) == (48, 8)
    of_base = json.loads((tiny / "config.json").read_text())["rms_norm_eps"]
    assert config["rms_norm_eps"] == pytest.approx(of_base * 64 / 48)
    assert manifest["severity"] == pytest.approx(0.25)
    model = load(out, base=tiny)
    verify(model, out)
    assert close(logits(AutoModelForCausalLM.from_pretrained(whole(out, tiny))), logits(model), 1e-6)


@pytest.mark.parametrize(("config", "rotation"), CASES)
def test_families_read_back(config: Any, rotation: str, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    made(config).to(torch.bfloat16).save_pretrained(base)
    compress(out, "v", base, None, calibrated(base, tmp_path), [], spec(0.4, rotation=rotation))
    assert "failure" not in read_manifest(out)
    model = load(out, base=base)
    verify(model, out)
    assert load(out, "stored", base=base).dtype == torch.bfloat16
    assert model.get_input_embeddings().embedding_dim == 24


def test_generation_with_a_cache_is_generation_without(tiny: Path, calibration: Path) -> None:
    model = sliced(tiny, Statistics(calibration), removed=0.25)
    prompt = TOKENS[:, :8]
    options = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(
        model.generate(prompt, use_cache=True, **options), model.generate(prompt, use_cache=False, **options)
    )
    cache = DynamicCache(config=model.config)
    found, states = forward(model, TOKENS, torch.ones_like(TOKENS), cache)
    assert close(found[:, -1], logits(model)[:, -1])
    assert close(states, hidden_states(model, TOKENS))


def test_other_methods_go_on_from_a_slice(tiny: Path, calibration: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    compress(parent, "p", tiny, None, calibration, [], spec(0.25))
    pruned = {**spec(0.0), "method": "magnitude", "settings": {"sparsity": 0.5}, "on": "p"}
    compress(tmp_path / "pruned", "v", tiny, parent, calibration, [], pruned)
    manifest = read_manifest(tmp_path / "pruned")
    assert "failure" not in manifest
    assert manifest["sparsity"] == pytest.approx(0.5, abs=1e-3)
    packed = {**pruned, "method": "rtn", "settings": {"bits": 4, "group_size": "channel"}}
    compress(tmp_path / "packed", "v", tiny, parent, calibration, [], packed)
    assert "layers of a sliced model can't be packed" in read_manifest(tmp_path / "packed")["failure"]
    compress(tmp_path / "twice", "v", tiny, parent, calibration, [], {**spec(0.25), "on": "p"})
    assert "can't be turned" in read_manifest(tmp_path / "twice")["failure"]


def test_settings_for_people_and_plan(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    settings = slicegpt.Settings(removed=0.25)
    assert settings.label == "25 % of the hidden size, a basis per block"
    assert (settings.curve, settings.severity) == ("a basis per block", 0.25)
    assert slicegpt.Settings(removed=0.25, rotation="model", basis="random").curve == "one basis, random"
    assert settings.statistics == ("tokens",)
    assert settings.check(config) is None
    assert slicegpt.Settings(removed=0.9).check(config) == (
        "removed 0.9 of the hidden size 64 leaves 0 columns; 8 must stay"
    )
    assert settings.check({key: value for key, value in config.items() if key != "num_attention_heads"}) is None
    with pytest.raises(ValueError, match="less than 1"):
        slicegpt.Settings(removed=1.0)


@pytest.mark.parametrize(
    ("removed", "width", "heads", "rotation", "kept"),
    [
        (0.0, 60, 4, "block", 60),
        (0.1, 576, 9, "block", 512),
        (0.25, 576, 9, "block", 432),
        (0.1, 576, 9, "model", 504),
        (0.25, 4096, 32, "block", 3072),
        (0.9, 640, 5, "block", 64),
        (0.3, 640, 8, "model", 448),
    ],
)
def test_what_is_kept_is_rounded_down(removed: float, width: int, heads: int, rotation: Any, kept: int) -> None:
    assert slicegpt.Settings(removed=removed, rotation=rotation).kept(width, heads) == kept


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("qwen3", "self_attn.q_norm would have another variance_epsilon"),
        ("helium", r"config.json can't say that model.layers.0.self_attn.o_proj.weight is \[64, 80\]"),
        ("opt", "its norms subtract a mean or add numbers"),
        ("gemma", "embed_tokens would have another scalar_embed_scale"),
        ("recurrent_gemma", "multiplied by the root of the hidden size"),
    ],
)
def test_one_basis_is_refused_where_config_json_can_not_say_it(name: str, why: str) -> None:
    model = new_model(name)
    slicegpt.Settings(removed=0.2).check_model(model)
    with pytest.raises(RefusedError, match=why):
        slicegpt.Settings(removed=0.2, rotation="model").check_model(model)


@pytest.mark.parametrize(("name", "why"), [("gemma2", "normalises what"), ("nanochat", "embeddings .* are normalised")])
def test_models_whose_stream_has_no_basis_are_refused(name: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        slicegpt.Settings(removed=0.2).check_model(new_model(name))


def family(name: str) -> Any:
    model = new_model(name)
    _widen_computed(model)
    unfuse(model)
    return model.float()


FAST = ("opt", "gpt2", "phi", "cohere", "granite", "phi3", "gemma", "deepseek_v3", "gpt_oss", "mamba", "falcon_h1")
"""Layer norms, learned positions, parallel blocks, factors, fused layers, offsets, experts, states."""
OTHERS = [name for name in committed() if name not in FAST and committed()[name]["slicegpt"] == "yes"]


@pytest.mark.parametrize("basis", ["pca", "random"])
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.families) for name in OTHERS)])
def test_nothing_removed_of_a_family_changes_nothing(name: str, basis: str) -> None:
    model = family(name)
    expected = logits(model)
    model = sliced(model, Windows(TOKENS), removed=0.0, basis=basis)
    assert model.config.hemorrhage["form"] == "sliced"
    assert close(logits(model), expected, 2e-5)


@pytest.mark.parametrize("name", ["opt", "phi", "gpt_oss", "falcon_h1"])
def test_a_familys_stream_in_a_subspace_is_sliced_for_nothing(name: str) -> None:
    """Norms take their mean over the old width, and each stage finds the subspace."""
    model = family(name)
    generator = torch.Generator().manual_seed(2)
    inside = torch.linalg.qr(torch.randn(80, 36, generator=generator, dtype=torch.float64)).Q
    project = (inside @ inside.T).float()
    with torch.no_grad():
        for module in (model.get_submodule(writer) for writer in find_stream(model).writers):
            if isinstance(module, nn.Embedding):
                module.weight.copy_(module.weight @ project)
            else:
                for value in module.parameters():
                    value.copy_(project @ value)
    model.tie_weights()
    expected = logits(model)
    slices = {
        basis: logits(sliced(copy.deepcopy(model), Windows(TOKENS), removed=0.5, basis=basis))
        for basis in ("pca", "random")
    }
    assert close(slices["pca"], expected, 1e-3)
    assert not close(slices["random"], expected, 1e-1)


@pytest.mark.parametrize("name", ["opt", "gpt_neox", "deepseek_v3"])
def test_sliced_families_in_16_bits_from_disk(name: str, tmp_path: Path) -> None:
    study = Study(name, tmp_path)
    compress(tmp_path / "out", "v", study.base, None, study.calibration, [], spec(0.2))
    manifest = read_manifest(tmp_path / "out")
    assert "failure" not in manifest, manifest["failure"]
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["hemorrhage"]
    assert (entry["form"], entry["kept"], len(entry["stages"])) == ("sliced", 64, 4)
    model = load(tmp_path / "out", base=study.base)
    verify(model, tmp_path / "out")
    assert load(tmp_path / "out", "stored", base=study.base).dtype == torch.bfloat16
    with torch.inference_mode():
        hidden = blockwise.forward_blockwise(model, TOKENS[:, :24])
        assert close(blockwise.logits(model, hidden), logits(model, TOKENS[:, :24]))
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
    prompt = TOKENS[:, :8]
    with_cache = generate(model, prompt, use_cache=True, **options)
    assert torch.equal(with_cache, generate(model, prompt, use_cache=False, **options))
