"""torch is imported when it is first used."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, types
from hemorrhage.runtime.lazy import torch
assert "torch" not in sys.modules
sys.modules["torch"] = types.SimpleNamespace(float32="the real one")
assert torch.float32 == "the real one"
try:
    torch.absent
except AttributeError:
    print("as torch says")
"""


def test_torch_comes_with_its_first_use() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout == "as torch says\n"


def test_it_is_torch() -> None:
    import torch as real

    from hemorrhage.runtime.lazy import torch

    assert torch.float32 is real.float32
    assert torch.nn.Linear is real.nn.Linear
