"""What writes to the residual stream, beside the names that families give it and transformers' own modules."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.depth_expansion import llama_pro
from hemorrhage.compress.solvers.residual import find_writers, refuse_normed_writes
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.architecture import architecture
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.masked import MaskedLinear
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from tests.families import build

EXPERTS = range(4)
DOWN = [f"mlp.experts.{expert}.down_proj" for expert in EXPERTS]

WRITERS = {
    "llama": ["self_attn.o_proj", "mlp.down_proj"],
    "gpt2": ["attn.c_proj", "mlp.c_proj"],
    "bloom": ["self_attention.dense", "mlp.dense_4h_to_h"],
    "phi": ["self_attn.dense", "mlp.fc2"],
    "mamba2": ["mixer.out_proj"],
    "falcon_h1": ["mamba.out_proj", "self_attn.o_proj", "feed_forward.down_proj"],
    "mixtral": ["self_attn.o_proj", *(f"block_sparse_moe.experts.{expert}.w2" for expert in EXPERTS)],
    "qwen2_moe": ["self_attn.o_proj", *DOWN, "mlp.shared_expert.down_proj"],
    "deepseek_v3": ["self_attn.o_proj", *DOWN, "mlp.shared_experts.down_proj"],
    "gpt_oss": ["self_attn.o_proj", *DOWN],
    "llama4_text": [
        "self_attn.o_proj",
        *(f"feed_forward.experts.{expert}.down_proj" for expert in EXPERTS),
        "feed_forward.shared_expert.down_proj",
    ],
    "phimoe": ["self_attn.o_proj", *(f"block_sparse_moe.experts.{expert}.w2" for expert in EXPERTS)],
    "olmo2": ["self_attn.o_proj", "mlp.down_proj"],
}
"""Family -> what writes in its block 1, under the names of its checkpoints."""

PARTS = {
    "gpt2": ("attn", "mlp"),
    "mamba2": ("mixer",),
    "mixtral": ("self_attn", "mlp"),
    "qwen2_moe": ("self_attn", "mlp"),
    "deepseek_v3": ("self_attn", "mlp"),
    "granitemoe": ("self_attn", "block_sparse_moe"),
    "gpt_oss": ("self_attn", "mlp"),
    "llama4_text": ("self_attn", "feed_forward"),
    "llava": ("self_attn", "mlp"),
}
"""Family -> what transformers' blocks add to the residual stream."""

TOKENS = torch.randint(3, 500, (2, 16), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda name: build(root / name, name))


@pytest.mark.parametrize("family", WRITERS)
def test_the_layers_that_write_are_found_whatever_their_names(folder: Any, family: str) -> None:
    found = find_writers(load(folder(family), "stored"), [1])
    assert {place: sorted(names) for place, names in found.items()} == {1: sorted(WRITERS[family])}


@pytest.mark.parametrize("family", PARTS)
def test_a_copy_of_half_the_weight_adds_half(folder: Any, tmp_path: Path, family: str) -> None:
    prepare({"source": "path", "path": str(folder(family))}, tmp_path / "base")
    spec = {"sweep": "s", "method": "duplication", "settings": {"added": 0.25, "scale": 0.5}, "seed": 0}
    compress(tmp_path / "v", "v", tmp_path / "base", None, None, [], spec)
    assert "failure" not in read_manifest(tmp_path / "v"), read_manifest(tmp_path / "v")["failure"]
    with torch.no_grad():
        ours = load(tmp_path / "v", base=tmp_path / "base")(TOKENS, use_cache=False).logits
        theirs = with_half_of_block_1(plain(folder(family)), PARTS[family])(TOKENS, use_cache=False).logits
    # Half of a 16-bit number is exact.
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def plain(folder: Path) -> Any:
    """The model of a folder as transformers alone loads it, in float32."""
    from transformers import AutoConfig

    model: Any = architecture(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def with_half_of_block_1(model: Any, parts: tuple[str, ...]) -> Any:
    """Put a copy of block 1 behind it, of which each of ``parts`` gives half."""

    def halve(_: Any, __: Any, output: Any) -> Any:
        return (output[0] / 2, *output[1:]) if isinstance(output, tuple) else output / 2

    stack = blocks(model)
    block = copy.deepcopy(stack[1])
    for part in parts:
        block.get_submodule(part).register_forward_hook(halve)
    stack.insert(2, block)
    config = model.config.get_text_config()
    config.num_hidden_layers = len(stack)
    if getattr(config, "layer_types", None):
        config.layer_types.insert(2, config.layer_types[1])
    return model


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt2"])
def test_what_writes_nothing_leaves_the_model_as_it_is(folder: Any, family: str) -> None:
    model = load(folder(family))
    with torch.no_grad():
        before = model(TOKENS, use_cache=False).logits
        llama_pro.alter(model, llama_pro.Settings(added=0.25), Context())
        assert len(blocks(model)) == 5
        assert (model(TOKENS, use_cache=False).logits - before).abs().max() < 1e-5 * before.abs().max()


def test_a_norm_behind_what_is_written_is_seen(folder: Any) -> None:
    refuse_normed_writes(load(folder("mixtral"), "stored"), range(4))
    with pytest.raises(RefusedError, match="Olmo2ForCausalLM normalises what its blocks write"):
        refuse_normed_writes(load(folder("olmo2"), "stored"), [2])


def test_a_block_that_norms_the_stream_itself_is_refused(folder: Any) -> None:
    with pytest.raises(RefusedError, match="OPTDecoderLayer does not only add to the residual stream"):
        find_writers(load(folder("opt-projected"), "stored"), [0])


def test_a_packed_layer_is_refused(folder: Any) -> None:
    model: PreTrainedModel = load(folder("llama-tied"), "stored")
    name = "model.layers.2.mlp.down_proj"
    model.set_submodule(name, MaskedLinear(Weights(folder("llama-tied")), f"{name}.weight", None))
    assert find_writers(model, [1]) == {1: ["self_attn.o_proj", "mlp.down_proj"]}
    with pytest.raises(RefusedError, match=r"what mlp\.down_proj of a LlamaDecoderLayer writes can't be scaled"):
        find_writers(model, [2])
