"""Comparison of a checkpoint's tensors with its config.json's architecture, from headers alone.

transformers itself says what it would find missing, left over or of another shape, on tensors without numbers: what it
renames, merges, ties, and leaves out on purpose is its business. Loading in earnest, it would only warn, and fill what
is missing with random numbers.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from hemorrhage.models.architecture import architecture
from hemorrhage.models.sources.files import Tensor, read_json, shorten_list
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' names of types -> torch's. A plain checkpoint has no others."""

BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")
"""Names of buffers that older checkpoints of any family store and transformers computes; a family adds its own."""


@dataclass
class Compared:
    """Tensors that a checkpoint stores and its model does not load: names to leave out, and sentences about them."""

    surplus: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class LoadingInfo(TypedDict):
    """What transformers says of a checkpoint's tensors."""

    missing_keys: Iterable[str]
    unexpected_keys: Iterable[str]
    mismatched_keys: Iterable[tuple[str, Sequence[int], Sequence[int]]]


def compare(folder: Path, stored: Mapping[str, Tensor]) -> Compared:
    """Compare the tensors of a folder with the architecture of its config.json.

    Raises InputError, one line, where they are not the same, or transformers knows no causal language model of the
    type. Reads no tensor, but for two that config.json says are one.
    """
    model, info = _load(folder, configuration(folder), stored)
    missing, left = (sorted(info[key], key=_in_order) for key in ("missing_keys", "unexpected_keys"))
    reshaped = sorted(info["mismatched_keys"], key=lambda each: _in_order(each[0]))
    prefix = _prefix(missing, left)
    if prefix:
        raise InputError(f"{folder} has {_count(left)} under names that begin with {prefix!r}, which has to go")
    if missing:
        raise InputError(f"{folder} lacks {_count(missing)} that config.json's architecture has")
    if reshaped:
        name, shape, wanted = reshaped[0]
        more = f"; so it is with {len(reshaped) - 1} more" if len(reshaped) > 1 else ""
        raise InputError(f"{folder} has {name} as {list(shape)}, config.json's architecture as {list(wanted)}{more}")
    if left:
        raise InputError(f"{folder} has {_count(left)} that config.json's architecture does not have")
    return _surplus(folder, model, stored)


def configuration(folder: Path) -> PreTrainedConfig:
    """Return a folder's configuration, from config.json in any encoding. Raises InputError where there is none."""
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    file = folder / "config.json"
    content = read_json(file)
    model_type = content.get("model_type")
    if model_type is None:
        raise InputError(f"{file} names no model_type")
    if model_type not in CONFIG_MAPPING:
        raise InputError(f"{file}: the model_type {model_type!r} is unknown to transformers {__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        # As transformers reads it everywhere else, which stumbles over a byte order mark.
        Path(scratch, "config.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                scratch, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise InputError(f"{file}: {_line(error).replace(scratch, str(folder))}") from None
    return config


def _load(folder: Path, config: PreTrainedConfig, stored: Mapping[str, Tensor]) -> tuple[PreTrainedModel, LoadingInfo]:
    """Return the model without numbers, and what transformers says of its tensors among ``stored``."""
    import torch
    from transformers import __version__
    from transformers.utils import logging

    try:
        model_class = architecture(config)
    except ValueError:
        line = f"{folder}: {config.model_type} is not a causal language model of transformers {__version__}"
        raise InputError(line) from None
    state = {
        name: torch.empty(tensor.shape, dtype=getattr(torch, TYPES[tensor.dtype]), device="meta")
        for name, tensor in stored.items()
    }
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Its table of what is missing would come before the line that says so.
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(f"{folder}: {model_class.__name__} can't be made of its config.json: {_line(error)}") from None
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
    return model, info


def _surplus(folder: Path, model: PreTrainedModel, stored: Mapping[str, Tensor]) -> Compared:
    """Return the tensors that are stored and not loaded: a tied tensor's second copy, and computed buffers."""
    surplus = Compared()
    for target, source in model.all_tied_weights_keys.items():
        if target in stored and source in stored:
            # A quantized layer's weight is in no file, and never equal to a plain tensor.
            in_files = stored[target].file.is_file() and stored[source].file.is_file()
            if not in_files or _bytes(stored[target]) != _bytes(stored[source]):
                raise InputError(
                    f"{folder} has {target} and {source} with different numbers, and config.json says that they are "
                    "one tensor (tie_word_embeddings)"
                )
            surplus.surplus.append(target)
            surplus.notes.append(f"{target} is stored next to {source}, and the two are one tensor: it counts once.")
    patterns = re.compile("|".join([*BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())]))
    loaded = model.state_dict()
    buffers = [name for name in stored if name not in loaded and name not in surplus.surplus and patterns.search(name)]
    if buffers:
        surplus.surplus += buffers
        surplus.notes.append(f"Left out, since the model computes it: {shorten_list(buffers, 1)}.")
    return surplus


def _bytes(tensor: Tensor) -> bytes:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.begin)
        return stream.read(tensor.end - tensor.begin)


def _prefix(missing: list[str], left: list[str]) -> str:
    """Return the prefix without which every left-over name is one of the missing; empty where there is none."""
    first = next((name for name in left if any(name.endswith(f".{other}") for other in missing)), None)
    if first is None:
        return ""
    prefix = first.removesuffix(next(other for other in missing if first.endswith(f".{other}")))
    known = {name.removeprefix(prefix) for name in left}
    return prefix if all(name.startswith(prefix) for name in left) and known <= set(missing) else ""


def _count(names: list[str]) -> str:
    more = len(names) - 1
    return f"{names[0]} and {more} more tensor{'s' if more > 1 else ''}" if more else names[0]


def _in_order(name: str) -> list[str | int]:
    """Return a key that sorts names with their numbers in order."""
    # Text and numbers take turns, so that no number is compared with a text.
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
