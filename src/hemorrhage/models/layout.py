"""Names and shapes of a family's files, and those that the bench has for them.

The bench wants each linear layer's weight [outputs, inputs] under the layer's name in memory. Some families store them
otherwise: experts of a layer as one tensor (Granite, gpt-oss, Llama 4), inputs before outputs (GPT-2), names of an
older version (GPT-NeoX, wrappers of a text tower). A base model's files stay as they are and are looked at through
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
from hemorrhage.models.stream import TensorLocation, map_tensor
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LAYOUT = "layout"
"""Key of config.json's ``hemorrhage`` that a checkpoint with the bench's names has."""

RENAMED = ("gpt_neox", "ernie4_5_moe", "granitemoe", "granitemoeshared", "granitemoehybrid")
"""Model types that are called otherwise on disk than in memory; wrappers of a text tower are, too."""

TURNED = ("gpt2",)
"""Model types with layers of [inputs, outputs]."""

STACKED = {
    "granitemoe": (False, False),
    "granitemoeshared": (False, False),
    "granitemoehybrid": (False, False),
    "llama4_text": (True, False),
    "gpt_oss": (True, True),
}
"""Model types that store experts as one tensor: whether its matrices are [inputs, outputs], and whether gate and up
take turns in them."""

PARTS = ("gate_proj", "up_proj", "down_proj")
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_bias)?")
_SINGLE = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.(weight|bias)")
_CONV1D = re.compile(r".*\.(c_attn|q_attn|c_proj|c_fc)\.weight")


@dataclass(frozen=True)
class Part(TensorLocation):
    """A part of a matrix that lies in a file in another shape ``raw``."""

    raw: tuple[int, ...] = ()
    turned: bool = False
    rows: slice | None = None

    def tensor(self) -> Tensor:
        """Return the part, mapped."""
        whole = map_tensor(self.file, self.offset, self.raw, self.dtype)
        turned = whole.T if self.turned else whole
        return turned if self.rows is None else turned[self.rows]


def differs(config: Mapping[str, Any]) -> bool:
    """Return whether the files of a model with this config.json are not as the bench wants them."""
    kind = _text_kind(config)
    return "text_config" in config or kind in (*RENAMED, *TURNED, *STACKED)


def view(folder: Path, places: dict[str, TensorLocation]) -> dict[str, TensorLocation]:
    """``places`` of a checkpoint folder's tensors as the bench sees them."""
    file = folder / "config.json"
    if not file.is_file():
        return places
    config = json.loads(file.read_text(encoding="utf-8-sig"))
    if not differs(config) or LAYOUT in (config.get("hemorrhage") or {}):
        return places
    kind = _text_kind(config)
    if "text_config" in config or kind in RENAMED:
        names = _in_memory(folder, file.stat().st_mtime_ns, tuple(places))
        places = {names[name]: place for name, place in places.items()}
    if kind in STACKED:
        places = _apart(places, *STACKED[kind])
    if kind in TURNED:
        places = {name: _turned(place) if _CONV1D.fullmatch(name) else place for name, place in places.items()}
    return places


def to_memory(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Rename tensors from the bench's names to those in transformers' memory, for the text model type ``kind``."""
    found = dict(state)
    for name, made in _fused(found, kind).items():
        parts = [found.pop(part) for part in made.parts]
        found[name] = made.join(parts)
    if kind in TURNED:
        found = {name: value.T.contiguous() if _CONV1D.fullmatch(name) else value for name, value in found.items()}
    return found


@dataclass(frozen=True)
class Joined:
    """A tensor of a family that is made of several of the bench's, whose names are ``parts``."""

    parts: tuple[str, ...]
    join: Callable[[list[Tensor]], Tensor]


def to_family(folder: Path, names: Iterable[str]) -> dict[str, Joined]:
    """Return the family's names for the tensors of a checkpoint with the bench's names, and what they are made of."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    kind, left = _text_kind(config), dict.fromkeys(names)
    found: dict[str, Joined] = {}
    for name, made in _fused(left, kind).items():
        for part in made.parts:
            del left[part]
        found[name] = made
    for name in left:
        turned = kind in TURNED and _CONV1D.fullmatch(name)
        found[name] = Joined((name,), (lambda parts: parts[0].T) if turned else (lambda parts: parts[0]))
    if "text_config" in config or kind in RENAMED:
        on_disk = _on_disk(folder, tuple(found))
        found = {on_disk[name]: made for name, made in found.items()}
    return found


def _text_kind(config: Mapping[str, Any]) -> str:
    text = config.get("text_config") or {}
    return str(text.get("model_type") or config.get("model_type"))


def _apart(places: dict[str, TensorLocation], turned: bool, interleaved: bool) -> dict[str, TensorLocation]:
    found: dict[str, TensorLocation] = {}
    for name, place in places.items():
        match = _FUSED.fullmatch(name)
        if match is None or len(place.shape) != (2 if match[3] else 3):
            found[name] = place
            continue
        for index in range(place.shape[0]):
            found |= _expert(place, match, index, turned and not match[3], interleaved)
    return found


def _expert(
    place: TensorLocation, match: re.Match[str], index: int, turned: bool, interleaved: bool
) -> dict[str, TensorLocation]:
    """Return the parts of expert ``index`` in the tensor of all."""
    raw = place.shape[1:]
    offset = place.offset + index * torch.Size(raw).numel() * place.dtype.itemsize
    rows, *columns = raw[::-1] if turned else raw
    suffix = "bias" if match[3] else "weight"
    if match[2] == "down_proj":
        halves = {"down_proj": slice(None)}
    elif interleaved:
        halves = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
    else:
        halves = {"gate_proj": slice(0, rows // 2), "up_proj": slice(rows // 2, rows)}
    return {
        f"{match[1]}.{index}.{part}.{suffix}": Part(
            place.file, place.dtype, (len(range(rows)[half]), *columns), offset, raw, turned, half
        )
        for part, half in halves.items()
    }


def _turned(place: TensorLocation) -> TensorLocation:
    return Part(place.file, place.dtype, place.shape[::-1], place.offset, place.shape, True)


def _fused(names: Iterable[str], kind: str) -> dict[str, Joined]:
    """Of a family that stores experts as one tensor: its names, and the bench's tensors that they are made of."""
    if kind not in STACKED:
        return {}
    turned, interleaved = STACKED[kind]
    there: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in names:
        match = _SINGLE.fullmatch(name)
        if match is not None:
            there.setdefault((match[1], match[3], match[4]), {})[int(match[2])] = name
    found: dict[str, Joined] = {}
    for (prefix, part, suffix), experts in there.items():
        if part == "up_proj":
            continue
        ending = "_bias" if suffix == "bias" else ""
        ordered = [experts[index] for index in sorted(experts)]
        flip = turned and suffix == "weight"
        if part == "down_proj":
            found[f"{prefix}.down_proj{ending}"] = Joined(tuple(ordered), functools.partial(_stack, flip=flip))
        else:
            ups = there[prefix, "up_proj", suffix]
            pairs = [name for index in sorted(experts) for name in (experts[index], ups[index])]
            join = functools.partial(_stack_pairs, flip=flip, interleaved=interleaved)
            found[f"{prefix}.gate_up_proj{ending}"] = Joined(tuple(pairs), join)
    return found


def _stack(parts: list[Tensor], flip: bool) -> Tensor:
    return torch.stack([part.T if flip else part for part in parts])


def _stack_pairs(parts: list[Tensor], flip: bool, interleaved: bool) -> Tensor:
    both = [
        torch.stack([gate, up], 1).flatten(0, 1) if interleaved else torch.cat([gate, up])
        for gate, up in zip(parts[::2], parts[1::2], strict=True)
    ]
    return _stack(both, flip)


@functools.lru_cache(maxsize=8)
def _in_memory(folder: Path, _written: int, names: tuple[str, ...]) -> dict[str, str]:
    """Return each name on disk -> what transformers calls it in memory, as when it loads."""
    from transformers.core_model_loading import rename_source_key

    model, renamings = _renamings(folder)
    there = model.state_dict()
    return {name: rename_source_key(name, renamings, [], model.base_model_prefix, there)[0] for name in names}


def _on_disk(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return each name in memory -> what the family calls it on disk, as when transformers saves."""
    from transformers.core_model_loading import PrefixChange, rename_source_key

    _, renamings = _renamings(folder, legacy=False)
    back = [each.reverse_transform() for each in reversed(renamings) if not isinstance(each, PrefixChange)]
    return {name: rename_source_key(name, back, [], reverse=True)[0] for name in names}


def _renamings(folder: Path, legacy: bool = True) -> tuple[Any, list[Any]]:
    from transformers import AutoConfig
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    vars(config).pop("quantization_config", None)
    model = skeleton(config)
    found = get_model_conversion_mapping(model, add_legacy=legacy)
    return model, [each for each in found if isinstance(each, WeightRenaming)]
