"""The tensors of a checkpoint beside those of the architecture that its config.json names, from headers alone.

transformers itself says what it would find missing, left over or of another shape, on tensors without numbers: what it
renames, merges, ties, and leaves out on purpose is its business. Loading in earnest, it would only warn, and fill what
is missing with random numbers.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
"""What older checkpoints store of any family and transformers computes; a family adds its own."""


@dataclass
class Compared:
    """What a whole checkpoint stores beside its model: names of tensors to leave behind, and sentences about them."""

    surplus: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def compare(folder: Path, stored: Mapping[str, Tensor]) -> Compared:
    """Compare the tensors of a folder with the architecture of its config.json.

    Raises InputError, one line, where they are not the same, or transformers knows no causal language model of the
    kind. Reads no tensor, but for two that config.json says are one.
    """
    model, found = _loaded(folder, configuration(folder), stored)
    missing, left, reshaped = (_in_order(found[f"{key}_keys"]) for key in ("missing", "unexpected", "mismatched"))
    prefix = _prefix(missing, left)
    if prefix:
        raise InputError(f"{folder} has {_counted(left)} under names that begin with {prefix!r}, which has to go")
    if missing:
        raise InputError(f"{folder} lacks {_counted(missing)} that config.json's architecture has")
    if reshaped:
        name, own, wanted = reshaped[0]
        more = f"; so it is with {len(reshaped) - 1} more" if len(reshaped) > 1 else ""
        raise InputError(f"{folder} has {name} as {list(own)}, config.json's architecture as {list(wanted)}{more}")
    if left:
        raise InputError(f"{folder} has {_counted(left)} that config.json's architecture does not have")
    return _surplus(folder, model, stored)


def configuration(folder: Path) -> PreTrainedConfig:
    """Return a folder's configuration, from config.json in any encoding. Raises InputError where there is none."""
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    file = folder / "config.json"
    said = read_json(file)
    kind = said.get("model_type")
    if kind is None:
        raise InputError(f"{file} names no model_type")
    if kind not in CONFIG_MAPPING:
        raise InputError(f"{file}: the model_type {kind!r} is unknown to transformers {__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        # As transformers reads it everywhere else, which stumbles over a byte order mark.
        Path(scratch, "config.json").write_text(json.dumps(said), encoding="utf-8")
        try:
            return AutoConfig.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise InputError(f"{file}: {_line(error).replace(scratch, str(folder))}") from None


def _loaded(
    folder: Path, config: PreTrainedConfig, stored: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model without numbers, and what transformers says of its tensors among ``stored``."""
    import torch
    from transformers import __version__
    from transformers.utils import logging

    try:
        kind = architecture(config)
    except ValueError:
        line = f"{folder}: {config.model_type} is no causal language model of transformers {__version__}"
        raise InputError(line) from None
    state = {
        name: torch.empty(tensor.shape, dtype=getattr(torch, TYPES[tensor.dtype]), device="meta")
        for name, tensor in stored.items()
    }
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Its table of what is missing would come before the line that says so.
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(f"{folder}: {kind.__name__} can't be made of its config.json: {_line(error)}") from None
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()


def _surplus(folder: Path, model: PreTrainedModel, stored: Mapping[str, Tensor]) -> Compared:
    """Return what is stored and not loaded: a tied tensor's second copy, and buffers that the model makes itself."""
    found = Compared()
    for target, source in model.all_tied_weights_keys.items():
        if target in stored and source in stored:
            if _bytes(stored[target]) != _bytes(stored[source]):
                raise InputError(
                    f"{folder} has {target} and {source} with different numbers, and config.json says that they are "
                    "one tensor (tie_word_embeddings)"
                )
            found.surplus.append(target)
            found.said.append(f"{target} is stored beside {source}, and the two are one tensor: it counts once.")
    patterns = re.compile("|".join([*BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())]))
    own = model.state_dict()
    buffers = [name for name in stored if name not in own and name not in found.surplus and patterns.search(name)]
    if buffers:
        found.surplus += buffers
        found.said.append(f"Left behind, since the model makes it itself: {shorten_list(buffers, 1)}.")
    return found


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


def _counted(names: list[str]) -> str:
    more = len(names) - 1
    return f"{names[0]} and {more} more tensor{'s' if more > 1 else ''}" if more else names[0]


def _in_order(names: Iterable[Any]) -> list[Any]:
    """Names, or tuples that begin with one, with their numbers in order."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in _parts(name)])


def _parts(name: Any) -> list[str]:
    # Text and numbers take turns, so that no number is compared with a text.
    return re.split(r"(\d+)", name if isinstance(name, str) else name[0])


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
