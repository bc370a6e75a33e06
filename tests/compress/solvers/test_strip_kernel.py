"""The kernel is compiled for NVIDIA's cards without one; tests.compress.solvers.test_strip runs it."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")

CONSTANTS = {"KEEP": False, "DTYPE": "bfloat16", "EPS": 2.0**-7, "COLUMNS": 128, "ROWS": 32}
POINTERS = ("W", "E", "B", "Δs", "firsts", "lasts", "of_rows", "total")


@pytest.mark.parametrize(("capability", "width", "kinds"), [(80, 128, 1), (90, 16, 3), (90, 0, 1)])
def test_the_kernel_is_compiled_and_stays_in_registers(capability: int, width: int, kinds: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hemorrhage.compress.solvers.strip_kernel import sweep_strip

    constants = {**CONSTANTS, "WIDTH": width, "KINDS": kinds}
    names = list(sweep_strip.arg_names)
    types = dict.fromkeys(names, "i32") | dict.fromkeys(POINTERS, "*fp32") | {"group_of": "*i32"}
    types |= dict.fromkeys(constants, "constexpr")
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(sweep_strip, types, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert len(compiled.asm["cubin"]) > 0
    assert "st.local" not in compiled.asm["ptx"], "memory that holds what registers do not"
