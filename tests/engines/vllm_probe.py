"""Asks vLLM's own code which formats it takes: its reader of compressed-tensors, and its choice of kernels.

Run by the Python of ``tests.engines.install``, never imported, for a device (cuda or cpu). Reads JSON on standard
input: ``cases``, each a ``quantization_config`` and whether the layers are experts, and ``methods``, names of other
libraries' formats. Writes for each case what vLLM says at each compute capability, an empty text where it takes the
format, and for each method that it reads the least capability. For CUDA the release's Python code is run without its
compiled part: the platform is a class of this file, and what a kernel asks compiled code about a device is answered as
csrc of that release does. Kernels are chosen, and not run.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from types import SimpleNamespace
from typing import TypedDict

import torch
import tvm_ffi  # noqa: F401  before CUDA's bindings are those of this file

DEVICE = sys.argv[1]


class Stub(types.ModuleType):
    """A module of CUDA's bindings, which humming imports and does not use before it compiles."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


if DEVICE == "cuda":
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "cuda.bindings.nvrtc", "cuda.bindings.runtime"):
        sys.modules[name] = Stub(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])

import vllm.platforms  # noqa: E402
from vllm.platforms.interface import CpuArchEnum, DeviceCapability, Platform, PlatformEnum  # noqa: E402

CAPABILITIES = ((7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0))

COMPILED = {
    "cutlass_scaled_mm_supports_fp8": 89,
    "cutlass_scaled_mm_supports_block_fp8": 90,
    "cutlass_scaled_mm_supports_fp4": 100,
    "cutlass_group_gemm_supported": 90,
}
"""Question that Python asks the compiled part -> the least compute capability for which csrc says yes."""

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


class Device(Platform):  # type: ignore[misc]
    """A GPU of a compute capability; unspecified while vLLM is imported, so that it looks for no compiled part."""

    _enum = PlatformEnum.UNSPECIFIED
    device_name = device_type = "cpu"
    dispatch_key = "CPU"
    capability: tuple[int, int] | None = None

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        return DeviceCapability(*cls.capability) if cls.capability else None

    @classmethod
    def number(cls) -> int:
        """Return the capability as vLLM compares it."""
        return 10 * cls.capability[0] + cls.capability[1] if cls.capability else -1

    @classmethod
    def has_device_capability(cls, capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        least = 10 * capability[0] + capability[1] if isinstance(capability, tuple) else capability
        return cls.number() >= least

    @classmethod
    def is_device_capability_family(cls, capability: int, device_id: int = 0) -> bool:
        return cls.number() // 10 == capability // 10

    @classmethod
    def supports_fp8(cls) -> bool:
        return cls.number() >= 89

    @classmethod
    def fp8_dtype(cls) -> torch.dtype:
        return torch.float8_e4m3fn

    @classmethod
    def is_fp8_fnuz(cls) -> bool:
        return False

    @classmethod
    def get_cpu_architecture(cls) -> CpuArchEnum:
        return CpuArchEnum.X86


if DEVICE == "cuda":
    vllm.platforms._current_platform = Device()

from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.distributed import parallel_state  # noqa: E402
from vllm.model_executor.layers.fused_moe import RoutedExperts  # noqa: E402
from vllm.model_executor.layers.fused_moe.activation import MoEActivation  # noqa: E402
from vllm.model_executor.layers.fused_moe.config import (  # noqa: E402
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.linear import LinearBase  # noqa: E402
from vllm.model_executor.layers.quantization import (  # noqa: E402
    DEPRECATED_QUANTIZATION_METHODS,
    QUANTIZATION_METHODS,
    get_quantization_config,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (  # noqa: E402
    CompressedTensorsConfig,
    CompressedTensorsKVCacheMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (  # noqa: E402
    CompressedTensorsMoEMethod,
)


class Linear(LinearBase):  # type: ignore[misc]
    """A layer that vLLM is asked about; it has no weights."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)


class Experts(RoutedExperts):  # type: ignore[misc]
    """The experts of a block, under the names of their matrices."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        torch.nn.Module.__init__(self)
        self.ckpt_gate_proj_name, self.ckpt_up_proj_name, self.ckpt_down_proj_name = "gate_proj", "up_proj", "down_proj"
        self.__dict__["moe_config"] = FusedMoEConfig(
            num_experts=4,
            experts_per_token=2,
            hidden_dim=hidden,
            intermediate_size=intermediate,
            num_local_experts=4,
            num_logical_experts=4,
            moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
            in_dtype=torch.bfloat16,
            activation=MoEActivation.SILU,
            device="cpu",
            routing_method=RoutingMethodType.Renormalize,
        )


Experts.__name__ = "RoutedExperts"


def pretend() -> None:
    """Let vLLM's Python code take the device for a GPU whose compiled part is there."""
    Device._enum = PlatformEnum.CUDA
    for name, least in COMPILED.items():
        setattr(torch.ops._C, name, lambda capability, least=least: capability >= least)


def ask_linear(config: CompressedTensorsConfig, layer: str, inputs: int, outputs: int) -> None:
    """Raise what vLLM raises for the linear ``layer`` of so many ``inputs`` and ``outputs``."""
    module = Linear()
    CompressedTensorsKVCacheMethod.validate_kv_cache_scheme(config.kv_cache_scheme)
    scheme = config.get_scheme(module, layer)
    if scheme is None:
        return
    same = {
        name: config.get_scheme_dict(module, layer.replace(fused, name))
        for fused in FUSED
        for name in FUSED[fused]
        if fused in layer
    }
    if same and any(each != next(iter(same.values())) for each in same.values()):
        raise ValueError(f"{layer} is created with the scheme of its first part, and the others have others")
    scheme.create_weights(
        layer=module,
        input_size=inputs,
        input_size_per_partition=inputs,
        output_partition_sizes=[outputs],
        output_size=outputs,
        params_dtype=torch.bfloat16,
        weight_loader=lambda *_, **__: None,
    )


def ask_experts(config: CompressedTensorsConfig, hidden: int, intermediate: int) -> None:
    """Raise what vLLM raises for the experts of a block of these widths."""
    module = Experts(hidden, intermediate)
    method = CompressedTensorsMoEMethod.get_moe_method(config, module, "model.layers.0.mlp.experts")
    method.create_weights(
        layer=module,
        num_experts=4,
        hidden_size=hidden,
        intermediate_size_per_partition=intermediate,
        params_dtype=torch.bfloat16,
        weight_loader=lambda *_, **__: None,
        intermediate_size_full=intermediate,
    )


class Case(TypedDict, total=False):
    """A ``quantization_config``, the linear layers that are asked about, and whether experts are, too.

    ``sizes``: inputs and outputs of a layer, 256 unless said.
    """

    config: dict[str, object]
    layers: list[str]
    experts: bool
    sizes: tuple[int, int]


def answer(case: Case) -> str:
    """Return what vLLM objects to a case, or nothing."""
    try:
        config = CompressedTensorsConfig.from_config(json.loads(json.dumps(case["config"])))
        config.packed_modules_mapping = FUSED
        inputs, outputs = case.get("sizes", (256, 256))
        if case.get("experts"):
            ask_experts(config, inputs, outputs)
        for layer in case["layers"]:
            ask_linear(config, layer, inputs, outputs)
    # Whatever vLLM raises is its answer.
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    return ""


def capability_of(method: str) -> int | None:
    """Return the least compute capability of another library's format, times ten; None where vLLM reads none of it."""
    given = {"quant_method": method, "bits": 4, "group_size": 128, "sym": True, "desc_act": False, "zero_point": True}
    overrides = (
        get_quantization_config(each).override_quantization_method({**given, "version": "gemm"}, None)
        for each in QUANTIZATION_METHODS
    )
    name = next(filter(None, overrides), method)
    if name not in QUANTIZATION_METHODS or name in DEPRECATED_QUANTIZATION_METHODS:
        return None
    return int(get_quantization_config(name).get_min_capability())


def main() -> None:
    """Answer the cases."""
    parallel_state._TP = SimpleNamespace(world_size=1, rank_in_group=0, rank=0)
    settings = VllmConfig()
    settings.model_config = SimpleNamespace(
        dtype=torch.bfloat16,
        quantization_config=None,
        quantization=None,
        hf_text_config=SimpleNamespace(),
        hf_config=SimpleNamespace(),
    )
    answers: list[dict[str, str]] = []
    with contextlib.redirect_stdout(sys.stderr), set_current_vllm_config(settings):
        if DEVICE == "cuda":
            pretend()
        asked = json.load(sys.stdin)
        for case in asked["cases"]:
            said: dict[str, str] = {}
            for major, minor in CAPABILITIES if DEVICE == "cuda" else ((0, 0),):
                if DEVICE == "cuda":
                    Device.capability = (major, minor)
                said[f"{major}.{minor}"] = answer(case)
            answers.append(said)
        capabilities = {name: capability_of(name) for name in (asked["methods"] if DEVICE == "cuda" else ())}
    methods = {name: least for name, least in capabilities.items() if least is not None}
    json.dump({"version": vllm.__version__, "answers": answers, "methods": methods}, sys.stdout)


main()
