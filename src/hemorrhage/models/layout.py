"""Names and shapes of a family's files, and those that the bench has for them.

The bench wants each linear layer's weight [outputs, inputs] under the layer's name in memory. Some families store them
otherwise: experts of a layer as one tensor (Granite, gpt-oss, Llama 4), inputs before outputs (GPT-2), names of an
older version (GPT-NeoX, wrappers of a text tower). A base model's files stay as they are and are read through
``view``; a variant's files have the bench's names, which its config.json says (``hemorrhage.layout``); ``to_memory``
and ``to_family`` lead back.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.architecture import skeleton
from hemorrhage.models.formats.config import BenchStorage
from hemorrhage.models.stream import TensorLocation, map_tensor
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

RENAMED = ("gpt_neox", "ernie4_5_moe", "granitemoe", "granitemoeshared", "granitemoehybrid")
"""Model types whose tensors have other names on disk than in memory; wrappers of a text tower have, too."""

TRANSPOSED = ("gpt2",)
"""Model types with layers of [inputs, outputs]."""

STACKED = {
    "granitemoe": (False, False),
    "granitemoeshared": (False, False),
    "granitemoehybrid": (False, False),
    "llama4_text": (True, False),
    "gpt_oss": (True, True),
}
"""Model types that store experts as one tensor -> is_transposed: its matrices are [inputs, outputs]; is_interleaved:
gate and up take turns in them."""

_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_bias)?")
_SINGLE = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.(weight|bias)")
_CONV1D = re.compile(r".*\.(c_attn|q_attn|c_proj|c_fc)\.weight")


@dataclass(frozen=True)
class MatrixView(TensorLocation):
    """Rows of a matrix, maybe transposed, that lies in a file in another shape ``raw``."""

    raw: tuple[int, ...] = ()
    is_transposed: bool = False
    rows: slice | None = None

    def tensor(self) -> Tensor:
        """Return the rows, mapped."""
        stored = map_tensor(self.file, self.offset, self.raw, self.dtype)
        matrix = stored.T if self.is_transposed else stored
        return matrix if self.rows is None else matrix[self.rows]


def differs(config: Mapping[str, Any]) -> bool:
    """Return whether the files of a model with this config.json are not as the bench wants them."""
    return "text_config" in config or _text_type(config) in (*RENAMED, *TRANSPOSED, *STACKED)


def view(folder: Path, locations: dict[str, TensorLocation]) -> dict[str, TensorLocation]:
    """Return ``locations`` of a checkpoint folder's tensors as the bench sees them."""
    file = folder / "config.json"
    if not file.is_file():
        return locations
    config = json.loads(file.read_text(encoding="utf-8-sig"))
    if not differs(config) or BenchStorage.of(config).is_by_layer:
        return locations
    model_type = _text_type(config)
    if "text_config" in config or model_type in RENAMED:
        names = _names_in_memory(folder, file.stat().st_mtime_ns, tuple(locations))
        locations = {names[name]: location for name, location in locations.items()}
    if model_type in STACKED:
        locations = _unstack(locations, *STACKED[model_type])
    if model_type in TRANSPOSED:
        locations = {
            name: _transpose(location) if _CONV1D.fullmatch(name) else location for name, location in locations.items()
        }
    return locations


def to_memory(state: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """Rename tensors from the bench's names to those in transformers' memory, for a text model's ``model_type``."""
    tensors = dict(state)
    for name, joined in _stacked(tensors, model_type).items():
        tensors[name] = joined.join([tensors.pop(source) for source in joined.sources])
    if model_type in TRANSPOSED:
        tensors = {name: value.T.contiguous() if _CONV1D.fullmatch(name) else value for name, value in tensors.items()}
    return tensors


@dataclass(frozen=True)
class Joined:
    """A tensor of a family that is made of several of the bench's, whose names are ``sources``."""

    sources: tuple[str, ...]
    join: Callable[[list[Tensor]], Tensor]


def unchanged(name: str) -> Joined:
    """Return how a tensor is made that the family has under the same name."""
    return Joined((name,), functools.partial(_single, flip=False))


class Renamer:
    """A family's names for layers: those on disk, those in transformers' memory, and this bench's."""

    def __init__(self, folder: Path) -> None:
        """``folder``: a checkpoint of the family."""
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._folder = folder
        self._model, conversions = _conversions(folder)
        self._renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        self._converters = [each for each in conversions if isinstance(each, WeightConverter)]
        self._modules: dict[str, nn.Module] = dict(self._model.named_modules())
        self._state = self._model.state_dict()

    @property
    def model_type(self) -> str:
        """The text model's."""
        return str(self._model.config.get_text_config(decoder=True).model_type)

    def module(self, name: str) -> nn.Module | None:
        """Return transformers' module of that name; None where it has none."""
        return self._modules.get(name)

    def in_memory(self, name: str) -> tuple[str, bool]:
        """Return transformers' name of the bench's tensor ``name``, and whether it is made of several tensors."""
        from transformers.core_model_loading import rename_source_key

        (on_disk,) = _names_on_disk(self._folder, (name,)).values()
        if name in self._state:
            return name, False
        renamed, pattern = rename_source_key(
            on_disk, self._renamings, self._converters, self._model.base_model_prefix, self._state
        )
        return renamed, pattern is not None

    def aliases(self, layers: Iterable[str]) -> list[str]:
        """Return all names of the ``layers``: the bench's, those in transformers' memory and those on disk."""
        names: dict[str, None] = {}
        for layer in layers:
            weight = f"{layer}.weight"
            on_disk = _names_on_disk(self._folder, (weight,))[weight]
            names |= dict.fromkeys(
                name.removesuffix(".weight") for name in (weight, self.in_memory(weight)[0], on_disk)
            )
        return list(names)


def to_family(folder: Path, names: Iterable[str]) -> dict[str, Joined]:
    """Return the family's names for the tensors of a checkpoint with the bench's names, and what they are made of."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    model_type, left = _text_type(config), dict.fromkeys(names)
    tensors: dict[str, Joined] = {}
    for name, joined in _stacked(left, model_type).items():
        for source in joined.sources:
            del left[source]
        tensors[name] = joined
    for name in left:
        is_transposed = model_type in TRANSPOSED and _CONV1D.fullmatch(name) is not None
        tensors[name] = Joined((name,), functools.partial(_single, flip=is_transposed))
    if "text_config" in config or model_type in RENAMED:
        on_disk = _names_on_disk(folder, tuple(tensors))
        tensors = {on_disk[name]: joined for name, joined in tensors.items()}
    return tensors


def _text_type(config: Mapping[str, Any]) -> str:
    text = config.get("text_config") or {}
    return str(text.get("model_type") or config.get("model_type"))


def _unstack(
    locations: dict[str, TensorLocation], is_transposed: bool, is_interleaved: bool
) -> dict[str, TensorLocation]:
    """Replace tensors of all experts by views of each expert's matrices."""
    unstacked: dict[str, TensorLocation] = {}
    for name, location in locations.items():
        match = _FUSED.fullmatch(name)
        if match is None or len(location.shape) != (2 if match[3] else 3):
            unstacked[name] = location
            continue
        for index in range(location.shape[0]):
            unstacked |= _expert(location, match, index, is_transposed and not match[3], is_interleaved)
    return unstacked


def _expert(
    location: TensorLocation, match: re.Match[str], index: int, is_transposed: bool, is_interleaved: bool
) -> dict[str, TensorLocation]:
    """Return the matrices of expert ``index`` in the tensor of all."""
    raw = location.shape[1:]
    offset = location.offset + index * torch.Size(raw).numel() * location.dtype.itemsize
    rows, *columns = raw[::-1] if is_transposed else raw
    suffix = "bias" if match[3] else "weight"
    if match[2] == "down_proj":
        halves = {"down_proj": slice(None)}
    elif is_interleaved:
        halves = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
    else:
        halves = {"gate_proj": slice(0, rows // 2), "up_proj": slice(rows // 2, rows)}
    return {
        f"{match[1]}.{index}.{projection}.{suffix}": MatrixView(
            location.file, location.dtype, (len(range(rows)[half]), *columns), offset, raw, is_transposed, half
        )
        for projection, half in halves.items()
    }


def _transpose(location: TensorLocation) -> TensorLocation:
    return MatrixView(location.file, location.dtype, location.shape[::-1], location.offset, location.shape, True)


def _stacked(names: Iterable[str], model_type: str) -> dict[str, Joined]:
    """Return the tensors of a family that stores experts as one tensor, and the bench's that they are made of."""
    if model_type not in STACKED:
        return {}
    is_transposed, is_interleaved = STACKED[model_type]
    of_layer: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in names:
        match = _SINGLE.fullmatch(name)
        if match is not None:
            of_layer.setdefault((match[1], match[3], match[4]), {})[int(match[2])] = name
    stacked: dict[str, Joined] = {}
    for (prefix, projection, suffix), experts in of_layer.items():
        if projection == "up_proj":
            continue
        ending = "_bias" if suffix == "bias" else ""
        ordered = [experts[index] for index in sorted(experts)]
        flip = is_transposed and suffix == "weight"
        if projection == "down_proj":
            stacked[f"{prefix}.down_proj{ending}"] = Joined(tuple(ordered), functools.partial(_stack, flip=flip))
        else:
            ups = of_layer[prefix, "up_proj", suffix]
            pairs = [name for index in sorted(experts) for name in (experts[index], ups[index])]
            join = functools.partial(_stack_pairs, flip=flip, is_interleaved=is_interleaved)
            stacked[f"{prefix}.gate_up_proj{ending}"] = Joined(tuple(pairs), join)
    return stacked


def _single(matrices: list[Tensor], flip: bool) -> Tensor:
    return matrices[0].T if flip else matrices[0]


def _stack(matrices: list[Tensor], flip: bool) -> Tensor:
    return torch.stack([matrix.T if flip else matrix for matrix in matrices])


def _stack_pairs(matrices: list[Tensor], flip: bool, is_interleaved: bool) -> Tensor:
    pairs = [
        torch.stack([gate, up], 1).flatten(0, 1) if is_interleaved else torch.cat([gate, up])
        for gate, up in zip(matrices[::2], matrices[1::2], strict=True)
    ]
    return _stack(pairs, flip)


@functools.lru_cache(maxsize=8)
def _names_in_memory(folder: Path, _written: int, names: tuple[str, ...]) -> dict[str, str]:
    """Map each name on disk to the one that transformers has in memory, as when it loads."""
    from transformers.core_model_loading import rename_source_key

    model, renamings = _renamings(folder)
    state = model.state_dict()
    return {name: rename_source_key(name, renamings, [], model.base_model_prefix, state)[0] for name in names}


def _names_on_disk(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Map each name in memory to the one that the family has on disk, as when transformers saves."""
    from transformers.core_model_loading import PrefixChange, rename_source_key

    _, renamings = _renamings(folder, legacy=False)
    back = [each.reverse_transform() for each in reversed(renamings) if not isinstance(each, PrefixChange)]
    return {name: rename_source_key(name, back, [], reverse=True)[0] for name in names}


def _renamings(folder: Path, legacy: bool = True) -> tuple[Any, list[Any]]:
    from transformers.core_model_loading import WeightRenaming

    model, conversions = _conversions(folder, legacy)
    return model, [each for each in conversions if isinstance(each, WeightRenaming)]


def _conversions(folder: Path, legacy: bool = True) -> tuple[Any, list[Any]]:
    from transformers import AutoConfig
    from transformers.conversion_mapping import get_model_conversion_mapping

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    vars(config).pop("quantization_config", None)
    model = skeleton(config)
    return model, get_model_conversion_mapping(model, add_legacy=legacy)
