"""Rows of tokens that are read in one pass, what they begin with in common only once.

The items of a probe are variations of one prompt, and choices follow it. Their tokens become the nodes of a tree; each
attends to its ancestors and stands at its depth, so that its hidden state is what it would be in a row of its own.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from hemorrhage.models.blocks import decoder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Trie:
    """Tokens of several rows. ``tokens`` and ``depths`` of the nodes; ``paths``: the nodes of each row, in order."""

    def __init__(self) -> None:
        """No rows."""
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.paths: list[list[int]] = []
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def would_add(self, row: list[int]) -> int:
        """Return the tokens of ``row`` that are not there yet."""
        node = -1
        for place, token in enumerate(row):
            if (node, token) not in self._children:
                return len(row) - place
            node = self._children[node, token]
        return 0

    def add(self, row: list[int]) -> None:
        """Another row."""
        path: list[int] = []
        node = -1
        for depth, token in enumerate(row):
            parent, node = node, self._children.setdefault((node, token), len(self.tokens))
            if node == len(self.tokens):
                self.tokens.append(token)
                self.depths.append(depth)
                self._parents.append(parent)
            path.append(node)
        self.paths.append(path)

    def mask(self) -> Tensor:
        """Return whether a node (row) attends to another (column): bool [n, n]."""
        ancestors = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        return ancestors


def accepts_trie(model: PreTrainedModel) -> bool:
    """Return whether ``model`` looks at earlier tokens by nothing but attention that takes a mask, over all of them.

    Not so are recurrent layers, sliding windows, and keys that are rounded in groups of neighbouring tokens.
    """
    config = model.config.get_text_config(decoder=True)
    return (
        config._attn_implementation == "sdpa"
        and "position_ids" in inspect.signature(decoder(model).forward).parameters
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and not getattr(config, "alibi", False)
        and not model._is_stateful
    )
