"""GPTQ checkpoints as AutoGPTQ, GPTQModel and auto-round write them: ``W = s (q - z)`` by groups of columns.

``qweight`` int32 [ceil(columns · bits / 32), rows] holds the codes of a row of the weight in a column, bit to bit
across words; ``qzeros`` int32 [groups, ceil(rows · bits / 32)] the zero points, packed along the rows; ``scales``
[groups, rows]; ``g_idx`` int32 [columns] the group of each column, which act-order scatters. Zero points of version 1
are stored less one, and reading adds it; version 2 (``checkpoint_format: gptq_v2``) stores them as they are.

A layer's bits are those that its own tensors have room for, so that GPTQModel's ``dynamic`` overrides need no matching
of its regular expressions.

Our checkpoints have the same tensors as ``gptq_qweight`` and so on, because AWQ has other tensors of these names, and
``gptq_parameters`` int32 [3]: bits, version of the zero points, columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.packed import unpack
from hemorrhage.models.formats.pieces import Pieces, fit, groups_in_words, whole

MARKS = ("qweight",)

NAMES = ("qweight", "qzeros", "scales", "g_idx")

PREFIX = "gptq_"

PARAMETERS = "gptq_parameters"

WIDTHS = (2, 3, 4, 8)

VERSIONS = {"gptq": 1, "gptq_v2": 2}
"""``checkpoint_format`` -> version of the zero points. Other formats of this name pack otherwise."""


class GptqLinear(DequantizedLinear):
    """A linear layer of GPTQ's packed codes, dequantized whenever it computes."""

    storage_format = "gptq"

    def __init__(self, stored: dict[str, Tensor]) -> None:
        """Take ``stored`` as in the module's docstring, of our names."""
        self.bits, self.version, columns = stored[PARAMETERS].tolist()
        super().__init__((stored["gptq_scales"].shape[1], columns), stored, None)

    def dense(self) -> Tensor:
        """Return the weight float32 [rows, columns], rounded to the type of the scales as in AutoGPTQ and GPTQModel."""
        stored = self.stored()
        words, scales, groups = stored["gptq_qweight"], stored["gptq_scales"], stored["gptq_g_idx"].long()
        zeros = unpack(self._zeros(), self.bits, self.out_features)
        # Groups of columns that follow each other need no gathering.
        width = self.in_features // len(scales)
        follow = torch.equal(groups, torch.arange(self.in_features, device=groups.device) // width)

        def piece(rows: slice) -> Tensor:
            q = unpack(words[:, rows].T, self.bits, self.in_features).float()
            z, s = zeros[:, rows].T.float(), scales[:, rows].T.float()
            # A product of a code and a scale of 16 bits is exact in float32: it is rounded once.
            if follow:
                q.unflatten(1, (len(scales), -1)).sub_(z.unsqueeze(2)).mul_(s.unsqueeze(2))
            else:
                q.sub_(z[:, groups]).mul_(s[:, groups])
            return q.to(scales.dtype)

        return self.by_rows(piece)

    def _zeros(self) -> Tensor:
        """Return the packed zero points as version 2 has them: int32 [groups, words].

        Version 1 is what GPTQModel and auto-round get when they take one from every code of a word at once. A zero
        point of 0 then borrows from the next, and only the sum of the whole word gives both back. Codes of 3 bits cross
        words, and each is counted alone.
        """
        words = self.stored()["gptq_qzeros"]
        if self.version == 2:
            return words
        if self.bits == 3:
            return _pack(unpack(words, 3, words.shape[1] * 32 // 3).int() + 4 + 1, 3, words.shape[1])
        ones = sum(1 << shift for shift in range(0, 32, self.bits))
        return _as_int32(words.long() + ones)


def _pack(codes: Tensor, bits: int, words: int) -> Tensor:
    """Pack ``codes`` [rows, n], taken modulo 2^bits, bit to bit: int32 [rows, words]."""
    mask = 2**bits - 1
    packed = torch.zeros(len(codes), words + 1, dtype=torch.int64)
    for column in range(codes.shape[1]):
        word, shift = divmod(column * bits, 32)
        code = codes[:, column].long() & mask
        packed[:, word] |= code << shift & 0xFFFFFFFF
        packed[:, word + 1] |= code >> (32 - shift)
    return _as_int32(packed[:, :words])


def _as_int32(words: Tensor) -> Tensor:
    """Return the lower 32 bits of int64 ``words`` as int32."""
    words = words & 0xFFFFFFFF
    return torch.where(words >= 2**31, words - 2**32, words).int()


def read(stored: dict[str, Tensor], _scheme: QuantizationScheme | None) -> GptqLinear:
    """Return the layer that our checkpoint's tensors ``stored`` describe."""
    return GptqLinear(stored)


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], _layer: str) -> GptqLinear:
    """Return the layer of a published checkpoint. Raises ValueError where its tensors don't fit each other."""
    return layer_of(stored, quantization, version_of(quantization))


def layer_of(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], version: int) -> GptqLinear:
    """Return the layer of tensors ``stored``, whose zero points are of ``version``. Raises ValueError."""
    pieces = Pieces(stored, NAMES)
    words = pieces.tensor("qweight", [torch.int32], 2)
    zeros = pieces.tensor("qzeros", [torch.int32], 2)
    scales = pieces.scales("scales")
    groups, rows = scales.shape
    fit("qweight", words, len(words), rows)
    given = pieces.tensor("g_idx", [torch.int32, torch.int64], 1) if "g_idx" in pieces else None
    bits = _width(words, zeros, rows, None if given is None else len(given), whole(quantization, "bits"))
    fit("qzeros", zeros, groups, _words(rows, bits))
    group_size = whole(quantization, "group_size")
    if given is None:
        columns = len(words) * 32 // bits
        given = _consecutive(columns, groups, group_size)
    _check_groups(given, groups, group_size)
    named = {"qweight": words, "qzeros": zeros, "scales": scales, "g_idx": given.int()}
    parameters = torch.tensor([bits, version, len(given)], dtype=torch.int32)
    return GptqLinear({f"{PREFIX}{name}": value for name, value in named.items()} | {PARAMETERS: parameters})


def version_of(quantization: Mapping[str, Any]) -> int:
    """Return the version of the zero points. Raises ValueError for a format that packs otherwise."""
    if quantization.get("is_marlin_format"):
        raise ValueError("is packed for Marlin (is_marlin_format), which is not read; checkpoint_format gptq is")
    if quantization.get("rotation"):
        raise ValueError("rotates its inputs (rotation), which is not read")
    name = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
    if name not in VERSIONS:
        raise ValueError(f"checkpoint_format {name!r} is not read; {' and '.join(VERSIONS)} are")
    if quantization.get("pack_dtype", "int32") != "int32":
        raise ValueError(f"pack_dtype {quantization['pack_dtype']!r} is not read; int32 is")
    return VERSIONS[name]


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    words = [f"GPTQ, {whole(quantization, 'bits')} bits", groups_in_words(whole(quantization, "group_size"))]
    if quantization.get("desc_act") is True:
        words.append("act-order")
    if quantization.get("dynamic"):
        words.append("some layers otherwise")
    return ", ".join(words)


def _words(codes: int, bits: int) -> int:
    """Return how many words ``codes`` of ``bits`` fill."""
    return -(-codes * bits // 32)


def _width(words: Tensor, zeros: Tensor, rows: int, columns: int | None, announced: int | None) -> int:
    """Return the bits that a layer's tensors have room for, of several those that are ``announced``."""
    fitting = [
        bits
        for bits in WIDTHS
        if zeros.shape[1] == _words(rows, bits) and (columns is None or len(words) == _words(columns, bits))
    ]
    if announced in fitting:
        return announced
    if len(fitting) == 1:
        return fitting[0]
    raise ValueError(
        f"qweight {list(words.shape)} and qzeros {list(zeros.shape)} are not of "
        f"{announced if announced in WIDTHS else ', '.join(map(str, WIDTHS))} bits"
    )


def _consecutive(columns: int, groups: int, group_size: int | None) -> Tensor:
    """Return the group of each column where groups follow each other: int32 [columns]."""
    size = columns if group_size is None or group_size < 1 else group_size
    if -(-columns // size) != groups:
        if columns % groups:
            raise ValueError(f"{groups} groups do not divide {columns} columns")
        size = columns // groups
    return torch.arange(columns, dtype=torch.int32) // size


def _check_groups(of_column: Tensor, groups: int, group_size: int | None) -> None:
    """Raise ValueError where a column's group is not there or a group has more columns than it may."""
    low, high = of_column.aminmax()
    if low < 0 or high >= groups:
        raise ValueError(f"g_idx has groups {int(low)} to {int(high)}, and there are {groups}")
    counts = of_column.long().bincount(minlength=groups)
    # Layers may have groups of another size than the configuration says (dynamic): then all are full but one.
    largest = max(group_size or 0, -(-len(of_column) // groups))
    if group_size is not None and group_size > 0 and int(counts.max()) > largest:
        raise ValueError(f"g_idx puts {int(counts.max())} columns into group {int(counts.argmax())} of {largest}")
