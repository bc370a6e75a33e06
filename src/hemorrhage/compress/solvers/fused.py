"""Linear layers that engines compute as one, and that therefore need one number format and width.

vLLM and others join the layers of a module that read the same input (query, key and value; gate and up) into one
product, and all experts of a block into one kernel. A checkpoint whose scheme differs within such a group can't be
loaded by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def fused_groups(model: nn.Module, shared: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the names of the layers of ``shared`` in groups of those that engines compute as one, in order.

    ``shared``: ``{first linear: [linears]}`` of those that read the same input, as it was observed. Layers of different
    modules are no group, though they read the same input, as attention and MLP of a parallel block do.
    """
    from hemorrhage.models.experts import mixtures

    experts = tuple(f"{name}.experts." for name in mixtures(model))
    groups: dict[str | tuple[str, str], list[str]] = {}
    for first, names in shared.items():
        for name in names:
            of_experts = next((prefix for prefix in experts if name.startswith(prefix)), None)
            groups.setdefault(of_experts or (first, name.rpartition(".")[0]), []).append(name)
    return list(groups.values())
