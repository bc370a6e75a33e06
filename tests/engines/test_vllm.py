"""The rows of vLLM in the table of engines are what the code of its release says (``make engines``)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hemorrhage.compress.solvers.grid import GridSettings
from hemorrhage.compress.solvers.number_formats import FLOATS, INPUTS, scheme_of_floats
from hemorrhage.compress.solvers.packing import scheme
from hemorrhage.engines import environment
from hemorrhage.engines.registry import ENGINES, vllm
from hemorrhage.models.engine_table import ABSENT, HEADS, LLAMA_CPP, METHODS, VLLM, VLLM_CPU, Engine
from hemorrhage.models.engines import Loads, answer
from hemorrhage.models.formats.config import QuantizationConfig, QuantizationScheme
from hemorrhage.models.formats.floats import with_scale_types
from tests.engines.formats import CACHES, FORMATS, config_of
from tests.engines.install import code_of_release
from tests.families import FAMILIES

pytestmark = pytest.mark.engines

PROBE = Path(__file__).with_name("vllm_probe.py")

LAYER = "model.layers.0.self_attn"
NAMED = [f"{LAYER}.{name}" for name in ("q_proj", "k_proj", "v_proj")]
FUSED = f"{LAYER}.qkv_proj"


def _mixed(first: str, second: str, split: bool) -> dict[str, Any]:
    """q, k and v in one format or in two, the output projection in the other."""
    alike, others = (NAMED[:1], [*NAMED[1:], f"{LAYER}.o_proj"]) if split else (NAMED, [f"{LAYER}.o_proj"])
    return config_of({"a": {**FORMATS[first], "targets": alike}, "b": {**FORMATS[second], "targets": others}})


def cases() -> dict[str, dict[str, Any]]:
    """Name -> a case of the probe."""
    linear, both = [f"{LAYER}.o_proj"], [FUSED, f"{LAYER}.o_proj"]
    one = {name: {"config": config_of({"group_0": scheme}), "layers": linear} for name, scheme in FORMATS.items()}
    experts = {f"{name}, experts": {**case, "experts": True} for name, case in one.items()}
    caches = {
        f"cache of {name}": {
            "config": config_of({"group_0": FORMATS["W4A16 in groups of 64"]}, kv_cache_scheme=scheme),
            "layers": linear,
        }
        for name, scheme in CACHES.items()
    }
    first, second, third = "W4A16 in groups of 64", "W3A16 in groups of 64", "FP8 per channel, tokens"
    packed = {"group_0": FORMATS[first]}
    mixtures = {
        "two widths": {"config": _mixed(first, second, split=False), "layers": both},
        "two widths in q, k, v": {"config": _mixed(first, second, split=True), "layers": both},
        "FP8 and integers": {"config": _mixed(first, third, split=False), "layers": both},
        "q without k and v": {"config": config_of(packed, ignore=("lm_head", NAMED[0])), "layers": both},
        "neither q, k nor v": {"config": config_of(packed, ignore=("lm_head", *NAMED)), "layers": both},
        "columns in another order": {
            "config": config_of(
                {"group_0": {**FORMATS[first], "weights": {**FORMATS[first]["weights"], "actorder": "group"}}}
            ),
            "layers": linear,
        },
    }
    return {**one, **experts, **caches, **mixtures, **written(), **odd_sizes()}


SIZES = ((576, 1536), (1536, 576), (192, 320), (96, 160), (80, 208))
"""Inputs and outputs of layers: those of SmolLM2, multiples of 64, of 32 and of 16."""


def odd_sizes() -> dict[str, dict[str, Any]]:
    """Layers of sizes that 256 does not divide, where groups divide the inputs; else the bench refuses them.

    Blocks of 128 x 128 are left out: layers that vLLM computes as one have to be whole blocks, which one layer does not
    show, and the table asks it of all.
    """
    configured: dict[str, dict[str, Any]] = {}
    for name, group in FORMATS.items():
        width = group["weights"].get("group_size") or 1
        for inputs, outputs in SIZES:
            if inputs % width == 0 and group["weights"].get("strategy") != "block":
                configured[f"{name}, {inputs} x {outputs}"] = {
                    "config": config_of({"group_0": group}),
                    "layers": [f"{LAYER}.o_proj"],
                    "sizes": [inputs, outputs],
                }
    return configured


INTEGERS = ("int8_token", "int8_tensor", "int8_static", "int4_token")

MADE_FOR: dict[str, tuple[str, ...]] = {
    "int4": (*INTEGERS, "fp8_token"),
    "int8": INTEGERS,
    **dict.fromkeys(("fp8", "fp8_tensor", "fp8_block"), ("fp8_token", "fp8_static", "fp8_group")),
    "nvfp4": ("nvfp4",),
    "mxfp4": ("mxfp4", "mxfp8"),
    "mxfp8": ("mxfp8",),
}
"""Format of weights -> formats of inputs."""


def written() -> dict[str, dict[str, Any]]:
    """Every format of weights that the bench writes, with inputs as they are and with those that it is made for.

    With others vLLM rounds inputs in another way than the configuration says, or not at all; the table does not say
    that it loads these.
    """
    int4 = scheme(GridSettings(bits=4, group_size=128, symmetric=True), symmetric=True)
    int8 = scheme(GridSettings(bits=8, group_size="channel"), symmetric=True)
    made: dict[str, QuantizationScheme] = {
        "int4": {"weights": int4, "format": "pack-quantized"},
        "int8": {"weights": int8, "format": "pack-quantized"},
        **{name: scheme_of_floats(number) for name, number in FLOATS.items()},
    }
    configured: dict[str, dict[str, Any]] = {}
    for name, weights in made.items():
        for inputs in ("", *MADE_FOR[name]):
            rounding = INPUTS[inputs] if inputs else None
            is_octets = name == "int8" and rounding is not None
            each: QuantizationScheme = {**weights}
            if is_octets:
                each["format"] = "int-quantized"
            if rounding is not None:
                each["input_activations"] = rounding.arguments
            config = with_scale_types(cast("QuantizationConfig", config_of({"group_0": each})))
            configured[f"written {name} {inputs}".strip()] = {"config": config, "layers": [f"{LAYER}.o_proj"]}
    return configured


CASES = cases()


@dataclass(frozen=True)
class Said:
    """vLLM's version; name of a case -> compute capability -> what it objects to; method -> its least capability."""

    version: str
    answers: dict[str, dict[str, str]]
    methods: dict[str, int]


def asked(device: str) -> Said:
    """What vLLM's code says on a device."""
    if not environment.is_installed(vllm("cpu")) or not code_of_release().exists():
        pytest.fail(f"{environment.home()} has no vLLM: make engines")
    done = subprocess.run(
        [str(environment.python_of(vllm("cpu"))), str(PROBE), device],
        input=json.dumps({"cases": list(CASES.values()), "methods": list(METHODS)}),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(code_of_release()) if device == "cuda" else ""},
        cwd=environment.home(),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return Said(said["version"], dict(zip(CASES, said["answers"], strict=True)), said["methods"])


@pytest.fixture(scope="module")
def on_cuda() -> Said:
    return asked("cuda")


@pytest.fixture(scope="module")
def on_cpu() -> Said:
    return asked("cpu")


def expected(name: str, engine: Engine) -> Loads | None:
    """What the table says of a case."""
    case = CASES[name]
    mixture = {"num_local_experts": 4} if case.get("experts") else {}
    hidden, intermediate = case.get("sizes", (256, 256))
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate}
    given = answer({"quantization_config": case["config"], **sizes, **mixture})
    return next((each for each in given.loads if each.engine == engine), None)


def test_the_releases_are_those_of_the_table(on_cuda: Said, on_cpu: Said) -> None:
    assert on_cuda.version.startswith(f"{VLLM.version}.")
    assert on_cpu.version.startswith(f"{VLLM_CPU.version}.")
    assert (vllm("cuda").version, vllm("cpu").version) == (on_cuda.version, on_cpu.version)
    assert ENGINES["llama_cpp"].version == LLAMA_CPP.version


def test_vllm_reads_the_methods_that_the_table_says(on_cuda: Said) -> None:
    named = {name: reader for name, readers in METHODS.items() for reader in readers if reader.engine == VLLM}
    assert sorted(named) == sorted(on_cuda.methods)
    least = {name: round(10 * (reader.capability or 0)) for name, reader in named.items()}
    assert {name: number for name, number in least.items() if number < on_cuda.methods[name]} == {}


@pytest.mark.parametrize("engine", [VLLM, VLLM_CPU], ids=str)
def test_it_has_neither_itself_nor_through_transformers_what_the_table_says(engine: Engine) -> None:
    packages = code_of_release() if engine == VLLM else environment.python_of(vllm("cpu")).parents[1] / "lib"
    (registry,) = packages.rglob("vllm/model_executor/models/registry.py")
    has = set(re.findall(r'"(\w+)": \(\s*"\w+",', registry.read_text(encoding="utf-8")))
    assert "LlamaForCausalLM" in has
    absent = set()
    for family, entries in FAMILIES.items():
        kind = entries.get("model_type", family)
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
        if not isinstance(architecture, str) or architecture in has:
            continue
        model = getattr(transformers, architecture)
        if not (model.is_backend_compatible() or model._can_set_attn_implementation()):
            absent.add(kind)
    assert absent == set(ABSENT)


def test_the_heads_of_its_cpu_build_are_those_of_the_table() -> None:
    packages = environment.python_of(vllm("cpu")).parents[1] / "lib"
    (attention,) = packages.rglob("vllm/v1/attention/backends/cpu_attn.py")
    text = attention.read_text(encoding="utf-8")
    said = re.search(r"def get_supported_head_sizes.*?return \[([\d, ]+)\]", text, re.DOTALL)
    assert said is not None
    assert tuple(map(int, said[1].split(","))) == HEADS[VLLM_CPU]


@pytest.mark.parametrize("name", CASES)
def test_vllm_takes_what_the_table_says_from_the_capability_that_it_says(name: str, on_cuda: Said) -> None:
    said, row = on_cuda.answers[name], expected(name, VLLM)
    taken = [float(capability) for capability, objection in said.items() if not objection]
    if row is None:
        # Nothing that a range of capabilities could say.
        assert not taken or 10.0 not in taken or 9.0 not in taken, said
    elif row.is_exact:
        assert taken == [row.capability], said
    else:
        assert taken == [float(each) for each in said if float(each) >= (row.capability or 0)], said


FAILS_WHEN_IT_RUNS = {
    "FP8 of one scale, fixed": "its operator static_scaled_fp8_quant is declared without arguments",
    "FP8 of one scale, tokens": "not run",
    "FP8 of one scale, fixed, experts": "not run",
    "FP8 per channel, tokens, experts": "not run",
    "written fp8 fp8_static": "not run",
    "written fp8 fp8_group": "not run",
    "written fp8_tensor fp8_token": "not run",
    "written fp8_tensor fp8_static": "its operator static_scaled_fp8_quant is declared without arguments",
    "written fp8_tensor fp8_group": "not run",
}
"""What its code takes and the table does not name, and why."""


@pytest.mark.parametrize("name", CASES)
def test_its_cpu_build_takes_what_the_table_says(name: str, on_cpu: Said) -> None:
    (objection,) = on_cpu.answers[name].values()
    named = expected(name, VLLM_CPU) is not None
    plain = re.sub(r", \d+ x \d+$", "", name)
    assert (named or plain in FAILS_WHEN_IT_RUNS) == (not objection), objection
