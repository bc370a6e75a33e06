"""Weights as compressed-tensors stores them in any of its formats, read as it computes.

A weight is ``(code - zero) · scale``, computed in the dtype of the scale and rounded to it, as the library's
``dequantize`` does: float32 for float32 scales, bfloat16 for bfloat16 ones. Codes are one of

- ``weight_packed`` int32, integers of 1 to 8 bits laid bit to bit as in hemorrhage.models.formats.packed; older
  releases of the library let no code of 3, 5, 6 or 7 bits cross a word, which rows of more words show;
- ``weight_packed`` uint8 [rows, columns / 2], two numbers of E2M1 a byte;
- ``weight`` int8 or float8_e4m3fn [rows, columns].

``weight_scale`` is [1], [rows, 1], [rows, groups] or [blocks of rows, blocks of columns]; bytes of it are powers of
two. ``weight_global_scale`` [1] divides the scales. ``weight_zero_point`` has the scales' shape, or is packed along the
rows. ``weight_g_idx`` [columns] is each column's group. ``input_scale``, ``input_zero_point`` and
``input_global_scale`` are for hemorrhage.models.emulation.

The group of config.json's quantization_config says ``scale_dtype`` of the weights; what the bench writes itself has
none, is hemorrhage.models.formats.packed or .int8, and is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hemorrhage.models.formats import small_floats
from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.packed import unpack
from hemorrhage.models.stream import rows_at_once

WEIGHT_TENSORS = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_global_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
)

INPUT_TENSORS = ("input_scale", "input_zero_point", "input_global_scale")

STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")


class CompressedLinear(DequantizedLinear):
    """A linear layer in one of compressed-tensors' formats, dequantized whenever it computes."""

    storage_format = "compressed"

    def __init__(self, stored: Mapping[str, Tensor], scheme: QuantizationScheme) -> None:
        """Take the tensors ``stored`` as in the module's docstring; ``scheme`` is the configuration's group.

        Raises ValueError where they don't fit each other.
        """
        check(stored, scheme["weights"])
        shape = shape_of(stored, scheme["weights"])
        tensors = dict(stored)
        if stored.get("weight_packed", torch.empty(0)).dtype == torch.int32:
            tensors["weight_shape"] = torch.tensor(shape)
        super().__init__(shape, tensors, None)
        self.scheme: QuantizationScheme = scheme
        _check_grid(self)

    def dense(self) -> Tensor:
        """Return what compressed-tensors dequantizes: float32 [rows, columns], of numbers of the scale's dtype."""
        rows, columns = self.out_features, self.in_features
        arguments, tensors = self.scheme["weights"], self.stored()
        scale, zero = scales(tensors), zero_points(tensors, arguments, rows)
        row_of, column_of = (index.to(scale.device) for index in grid_indices(self))

        def piece(of: slice) -> Tensor:
            factors = scale[row_of[of]][:, column_of]
            codes = _codes(tensors, arguments, of, columns).to(factors.dtype)
            if zero is not None:
                codes -= zero[row_of[of]][:, column_of].to(factors.dtype)
            product = codes * factors
            # The library holds numbers of E2M1 in bfloat16, though a global scale is float32.
            return product.bfloat16() if "weight_global_scale" in tensors else product

        return self.by_rows(piece)


def scales(stored: Mapping[str, Tensor]) -> Tensor:
    """Return the scales as the library multiplies with them: of 2 dimensions."""
    scale = stored["weight_scale"]
    if scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
        scale = small_floats.powers_of_two(scale).bfloat16()
    elif scale.dtype == torch.float8_e4m3fn:
        scale = scale.bfloat16()
    scale = scale.reshape(-1, 1) if scale.dim() < 2 else scale
    return scale / stored["weight_global_scale"].reshape(1, 1) if "weight_global_scale" in stored else scale


def zero_points(stored: Mapping[str, Tensor], arguments: QuantizationArgs, rows: int) -> Tensor | None:
    """Return the zero points in the scales' shape, None where the grid is symmetric."""
    zero = stored.get("weight_zero_point")
    if zero is None or arguments.get("symmetric", True):
        return None
    if _is_packed(stored) and zero.dtype == torch.int32:
        return _unpacked(zero.T.contiguous(), arguments["num_bits"], rows).T
    return zero.reshape(-1, 1) if zero.dim() < 2 else zero


def grid_indices(layer: CompressedLinear) -> tuple[Tensor, Tensor]:
    """Return the row of the scales that each row of the weight has, and the column of each of its columns."""
    arguments, stored = layer.scheme["weights"], layer.stored()
    rows, columns = torch.arange(layer.out_features), torch.arange(layer.in_features)
    match arguments["strategy"]:
        case "tensor":
            return torch.zeros_like(rows), torch.zeros_like(columns)
        case "channel":
            return rows, torch.zeros_like(columns)
        case "block":
            height, width = block(arguments)
            return rows // height, columns // width
    order = stored.get("weight_g_idx")
    # The library writes -1 where columns are in order.
    if order is not None and not bool((order == -1).any()):
        return rows, order.long()
    return rows, columns // int(arguments["group_size"] or 0)


def block(arguments: QuantizationArgs) -> tuple[int, int]:
    """Return rows and columns of a block. Raises ValueError where the group does not say it."""
    structure = arguments.get("block_structure")
    if not isinstance(structure, list) or len(structure) != 2 or not all(_is_positive(size) for size in structure):
        raise ValueError(f"block_structure {structure} is not two positive numbers")
    return structure[0], structure[1]


def shape_of(stored: Mapping[str, Tensor], arguments: QuantizationArgs) -> tuple[int, int]:
    """Return rows and columns of the weight. Raises ValueError where the codes and ``weight_shape`` don't agree."""
    codes = stored["weight_packed" if "weight_packed" in stored else "weight"]
    rows, width = codes.shape
    if not _is_packed(stored):
        columns = 2 * width if codes.dtype == torch.uint8 else width
        declared = stored.get("weight_shape")
        if declared is not None and declared.flatten().tolist() != [rows, columns]:
            raise ValueError(f"weight_shape {declared.flatten().tolist()} is not that of the weight, {[rows, columns]}")
        return rows, columns
    bits = arguments["num_bits"]
    if "weight_shape" in stored:
        declared = stored["weight_shape"].flatten()
        if declared.dtype.is_floating_point or len(declared) != 2 or int(declared[0]) != rows:
            raise ValueError(f"weight_shape {declared.tolist()} does not fit {rows} rows of packed words")
        columns = int(declared[1])
    elif arguments["strategy"] in ("group", "tensor_group"):
        scale = stored["weight_scale"]
        columns = (scale.shape[-1] if scale.dim() > 1 else 1) * int(arguments["group_size"] or 0)
    else:
        columns = width * 32 // bits
    if columns < 1 or width not in (_words(columns, bits), _loose_words(columns, bits)):
        raise ValueError(f"{columns} columns of {bits} bits do not fit rows of {width} packed words")
    return rows, columns


def check(stored: Mapping[str, Tensor], arguments: QuantizationArgs) -> None:
    """Raise ValueError where a tensor is missing, surplus, or of a type that the format does not have."""
    surplus = sorted(set(stored) - {*WEIGHT_TENSORS, *INPUT_TENSORS})
    if surplus:
        raise ValueError(f"unexpected tensor {surplus[0]}")
    if arguments.get("strategy") not in STRATEGIES:
        raise ValueError(
            f"strategy {arguments.get('strategy')} of weights is unknown; known are {', '.join(STRATEGIES)}"
        )
    if ("weight" in stored) == ("weight_packed" in stored):
        raise ValueError("needs either weight or weight_packed")
    if "weight_scale" not in stored:
        raise ValueError("weight_scale is missing")
    is_integer, bits = arguments["type"] == "int", arguments["num_bits"]
    codes = stored["weight_packed" if "weight_packed" in stored else "weight"]
    if codes.dim() != 2 or not codes.numel():
        raise ValueError(f"the weight has the shape {list(codes.shape)}: two dimensions are read")
    if is_integer:
        expected, fits = torch.int32 if "weight_packed" in stored else torch.int8, 1 <= bits <= 8
    else:
        expected = torch.uint8 if "weight_packed" in stored else torch.float8_e4m3fn
        fits = bits == (4 if "weight_packed" in stored else 8)
    if codes.dtype != expected or not fits:
        raise ValueError(f"{bits}-bit {arguments['type']} weights of type {codes.dtype} can't be read")
    _check_scales(stored, arguments)


def _check_scales(stored: Mapping[str, Tensor], arguments: QuantizationArgs) -> None:
    scale = stored["weight_scale"]
    types = (*small_floats.REAL, torch.float8_e4m3fn, torch.uint8, torch.float8_e8m0fnu)
    if scale.dtype not in types or scale.dim() > 2 or not scale.numel():
        raise ValueError(f"weight_scale of type {scale.dtype} and shape {list(scale.shape)} can't be read")
    if not bool(scales({"weight_scale": scale}).isfinite().all()):
        raise ValueError("weight_scale is not finite")
    total = stored.get("weight_global_scale")
    if total is not None and not small_floats.is_scale(total):
        raise ValueError("weight_global_scale is not one finite number above 0")
    if not arguments.get("symmetric", True) and "weight_zero_point" not in stored:
        raise ValueError("weight_zero_point is missing, and the grid is asymmetric")
    weight = stored.get("weight")
    if weight is not None and weight.dtype == torch.float8_e4m3fn and has_nan(weight):
        raise ValueError("weight has a NaN")


def has_nan(codes: Tensor) -> bool:
    """Return whether ``codes`` float8_e4m3fn has a NaN, which torch can't be asked of that type."""
    step = rows_at_once(codes.shape[-1])
    octets = codes.view(torch.uint8)
    return any(bool(((piece & 127) == 127).any()) for piece in octets.split(step))


def _check_grid(layer: CompressedLinear) -> None:
    """Raise ValueError where scales, zero points or groups are not those of the weight's shape."""
    arguments, stored = layer.scheme["weights"], layer.stored()
    rows, columns = layer.out_features, layer.in_features
    match arguments["strategy"]:
        case "tensor":
            expected = (1, 1)
        case "channel":
            expected = (rows, 1)
        case "block":
            height, width = block(arguments)
            expected = (-(-rows // height), -(-columns // width))
        case _:
            size = arguments.get("group_size")
            if not _is_positive(size) or (columns % int(size or 1) and columns > int(size or 1)):
                raise ValueError(f"{columns} columns do not consist of groups of {size}")
            expected = (rows, -(-columns // int(size or 1)))
    shape = tuple(scales(stored).shape)
    if shape != expected:
        raise ValueError(f"weight_scale has the shape {list(shape)}, and {list(expected)} fits the weight")
    _check_zero_points(layer, expected)
    order = stored.get("weight_g_idx")
    if order is not None:
        _check_order(order, columns, expected[1], int(arguments.get("group_size") or 0))


def _check_zero_points(layer: CompressedLinear, expected: tuple[int, int]) -> None:
    arguments, stored = layer.scheme["weights"], layer.stored()
    zero = stored.get("weight_zero_point")
    if zero is None or arguments.get("symmetric", True):
        return
    if _is_packed(stored) and zero.dtype == torch.int32:
        counts = (layer.out_features, arguments["num_bits"])
        fits = tuple(zero.shape) in [(words(*counts), expected[1]) for words in (_words, _loose_words)]
    else:
        flat = zero.reshape(-1, 1) if zero.dim() < 2 else zero
        fits = tuple(flat.shape) == expected and not zero.dtype.is_complex
    if not fits:
        raise ValueError(f"weight_zero_point of shape {list(zero.shape)} does not fit {list(expected)} scales")


def _check_order(order: Tensor, columns: int, groups: int, size: int) -> None:
    """Raise ValueError where ``weight_g_idx`` does not give each group its columns."""
    if order.dtype.is_floating_point or tuple(order.shape) != (columns,):
        raise ValueError(f"weight_g_idx has the shape {list(order.shape)}, and [{columns}] fits the weight")
    if bool((order == -1).any()):
        return
    if bool((order < 0).any()) or bool((order >= groups).any()):
        raise ValueError(f"weight_g_idx names a group that is not among the {groups}")
    if int(order.long().bincount().max()) > size:
        raise ValueError(f"weight_g_idx gives a group more than {size} columns: groups overlap")


def _codes(stored: Mapping[str, Tensor], arguments: QuantizationArgs, piece: slice, columns: int) -> Tensor:
    """Return the codes of the rows ``piece``, or the numbers that they are."""
    if _is_packed(stored):
        return _unpacked(stored["weight_packed"][piece], arguments["num_bits"], columns)
    if "weight_packed" in stored:
        return small_floats.unpack_e2m1(stored["weight_packed"][piece])
    return stored["weight"][piece]


def _unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    is_dense = words.shape[1] == _words(columns, bits)
    return unpack(words, bits, columns) if is_dense else _unpack_loose(words, bits, columns)


def _unpack_loose(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return the codes of words whose last bits are unused, as older releases packed 3, 5, 6 and 7 bits."""
    shifts = torch.arange(32 // bits, device=words.device) * bits
    codes = (words.unsqueeze(2) >> shifts) & (2**bits - 1)
    octets: Tensor = codes.flatten(1)[:, :columns].sub_(2 ** (bits - 1)).to(torch.int8)
    return octets


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def _loose_words(count: int, bits: int) -> int:
    return -(-count // (32 // bits))


def _is_packed(stored: Mapping[str, Tensor]) -> bool:
    """Return whether the codes are integers in words."""
    return "weight_packed" in stored and stored["weight_packed"].dtype == torch.int32


def _is_positive(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0


def read(stored: dict[str, Tensor], scheme: QuantizationScheme | None) -> CompressedLinear:
    """Return the layer that a checkpoint's tensors ``stored`` and its configuration describe."""
    if scheme is None:
        raise ValueError("compressed weights without a group in config.json's quantization_config")
    return CompressedLinear(stored, scheme)
