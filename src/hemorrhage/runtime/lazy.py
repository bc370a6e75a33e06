"""``torch``, imported when first used.

The plan reads the settings of every method and strategy to validate params.yaml and to compute
addresses. It must not pay seconds for importing torch to do so.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("torch"), name)

    torch = _Torch()

__all__ = ["torch"]
