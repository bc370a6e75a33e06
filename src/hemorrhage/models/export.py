"""A checkpoint as other programs read it: dense, packed, or as one GGUF file, without this bench's own files.

``dense``: a plain Hugging Face folder in the base's dtype, all storage formats multiplied out, that transformers
loads alone. ``packed``: the quantized checkpoint as it is stored, which vLLM and transformers read. ``gguf``: a GGUF
file for llama.cpp, in the block types of a variant that has them; integers and MXFP4 are written in the block type that
has their grid (hemorrhage.models.formats.gguf_exact), so that nothing is rounded a second time, and a quantized layer
that fits no type is refused. ``gguf-dense``: a GGUF file in the base's dtype, all storage formats multiplied out.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.formats.config import LAYOUT
from hemorrhage.models.layout import Joined, to_family
from hemorrhage.models.weights import CHECK, FILE, Weights
from hemorrhage.runtime.artifact import MANIFEST, writing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hemorrhage.models.formats.gguf_file import Entry
    from hemorrhage.models.formats.storage import FormattedLinear

FORMATS = ("dense", "packed", "gguf", "gguf-dense")

ModelConfig = Mapping[str, Any]
"""A config.json, whose keys are the architecture's."""

OWN_FILES = (MANIFEST, CHECK, FILE, "layers.json")
"""Files that only this bench reads."""


ROUNDS_INPUTS = "it rounds the inputs of its layers while it runs, which a plain checkpoint can't say"


@dataclass(frozen=True)
class Supply:
    """A dense tensor of a checkpoint: its shape, and what gives it; ``layer``: of the storage format it lies in."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]
    layer: Callable[[], FormattedLinear] | None = None


Writer = Callable[[Path, ModelConfig, Weights, Path], None]
"""Writes the checkpoint of a folder, with this config.json and these weights, as an output."""


def write(folder: Path, out: Path, layout: str, base: Path | None = None) -> None:
    """Write the checkpoint ``folder`` to ``out``, which is not there yet, as one of ``FORMATS``, whole or not at all.

    ``base``: the base model's folder, which the checkpoint may share weights with. Raises ValueError where the format
    can't hold it.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writers: dict[str, Writer] = {"dense": _dense, "packed": _packed, "gguf": _gguf, "gguf-dense": _gguf_dense}
    writers[layout](folder, settings, Weights(folder, base), out)


def exported_config(settings: ModelConfig, layout: str) -> Mapping[str, object]:
    """Return what config.json of the output says of its storage."""
    if layout.startswith("gguf"):
        return {"hemorrhage": {"form": "gguf_file"}}
    left_out = {"hemorrhage"} if layout == "packed" else {"hemorrhage", "quantization_config"}
    return {key: value for key, value in settings.items() if key not in left_out}


def plain_problem(settings: ModelConfig) -> str | None:
    """Say why no plain checkpoint computes what a model with this config.json does, or return None."""
    bench = settings.get("hemorrhage") or {}
    quantization = settings.get("quantization_config") or {}
    if bench.get("form", "gguf_file") != "gguf_file":
        return f"its form ({bench['form']}) is another architecture, which a plain checkpoint can't hold"
    if bench.get("narrow"):
        number, first = len(bench["narrow"]), bench["narrow"][0]
        return f"{number} weights ({first} ...) are narrower than config.json can say for a single layer"
    if bench.get("kv_cache") or quantization.get("kv_cache_scheme"):
        return "it rounds or evicts keys and values while it runs, which a plain checkpoint can't say"
    if any(group.get("input_activations") for group in quantization.get("config_groups", {}).values()):
        return ROUNDS_INPUTS
    return None


def _dense(folder: Path, settings: ModelConfig, weights: Weights, out: Path) -> None:
    from tqdm import tqdm

    from hemorrhage.models.stream import TensorFile

    supplies, dtype = _supplies(folder, settings, weights)
    with writing(out) as scratch:
        shapes = {name: supply.shape for name, supply in supplies.items()}
        with TensorFile(scratch / "model.safetensors", shapes, dtype, {"format": "pt"}) as file:
            for supply in tqdm(supplies.values(), desc="export", unit="tensor", mininterval=5, leave=False):
                file.write([supply.load().to(dtype)])
        plain = {key: value for key, value in settings.items() if key not in ("hemorrhage", "quantization_config")}
        _write_config({**plain, "dtype": str(dtype).removeprefix("torch.")}, scratch)
        _copy(folder, scratch, lambda file: file.suffix not in (".safetensors", ".gguf"))


def _packed(folder: Path, settings: ModelConfig, weights: Weights, out: Path) -> None:
    from hemorrhage.models.packed_folder import packed_folder
    from hemorrhage.models.stream import TensorFile

    bench = settings.get("hemorrhage") or {}
    # That there are codes of a table is also what the quantization_config says.
    formats = [key for key, value in bench.items() if key != LAYOUT and (key, value) != ("forms", ["codebook"])]
    if formats:
        what = ", ".join([bench["form"]] if "form" in bench else [*bench.get("forms", ()), *(set(formats) - {"forms"})])
        raise ValueError(f"its weights are in a form of this bench ({what}) that no engine reads packed")
    packed = packed_folder(folder, weights.names())
    stored = {name: Supply(tuple(weights.shape(name)), partial(weights.tensor, name)) for name in weights.names()}
    supplies = {name: _joined(made, stored) for name, made in packed.tensors.items()}
    with writing(out) as scratch:
        plain = {key: value for key, value in settings.items() if key != "hemorrhage"}
        _write_config({**plain, "quantization_config": packed.quantization}, scratch)
        shapes = {name: supply.shape for name, supply in supplies.items()}
        dtypes = {name: weights.dtype(made.sources[0]) for name, made in packed.tensors.items()}
        with TensorFile(scratch / "model.safetensors", shapes, dtypes, {"format": "pt"}) as file:
            file.write(supply.load() for supply in supplies.values())
        _copy(folder, scratch, lambda file: file.suffix != ".safetensors")


def _gguf(folder: Path, settings: ModelConfig, weights: Weights, out: Path) -> None:
    from hemorrhage.models.formats.gguf_file import FILE

    if (settings.get("hemorrhage") or {}).get("form") == "gguf_file":
        with _writing_file(out) as scratch:
            shutil.copyfile(folder / FILE, scratch)
        return
    _gguf_of(folder, settings, weights, out, in_blocks=True)


def _gguf_dense(folder: Path, settings: ModelConfig, weights: Weights, out: Path) -> None:
    _gguf_of(folder, settings, weights, out, in_blocks=False)


def _gguf_of(folder: Path, settings: ModelConfig, weights: Weights, out: Path, in_blocks: bool) -> None:
    from hemorrhage.models.architecture import text_entries
    from hemorrhage.models.formats.gguf_file import file_type_of, tokenizer_problem, write

    reason = tokenizer_problem(folder)
    if reason:
        raise ValueError(reason)
    # A GGUF file has neither the family's layout of tensors nor the bench's; its writer starts from the bench's.
    supplies, dtype = _supplies(folder, settings, weights, as_family=False)
    entries = {name: _entry(name, supply, dtype, in_blocks, supplies) for name, supply in supplies.items()}
    weights_of: Counter[str] = Counter()
    for entry in entries.values():
        weights_of[entry.ggml_type] += math.prod(entry.shape)
    most, _ = weights_of.most_common(1)[0]
    with _writing_file(out) as scratch:
        write(scratch, text_entries(folder), folder, entries, file_type_of(most))


def _entry(name: str, supply: Supply, dtype: torch.dtype, in_blocks: bool, supplies: Mapping[str, Supply]) -> Entry:
    """Return a tensor of a GGUF file. Raises ValueError where a layer is to be in blocks, and no type has its grid."""
    from hemorrhage.models.formats.gguf_exact import block_type, blocks
    from hemorrhage.models.formats.gguf_file import Entry, float_entry

    layer = supply.layer
    if layer is None or not in_blocks:
        return float_entry(supply.shape, supply.load, dtype)
    try:
        return Entry(block_type(layer()), supply.shape, lambda: blocks(layer()))
    except ValueError as error:
        size = dtype.itemsize * sum(math.prod(other.shape) for other in supplies.values()) / 1e6
        raise ValueError(
            f"{name}: {error}; --as gguf-dense writes {size:.1f} MB in {8 * dtype.itemsize} bits"
        ) from None


def _supplies(
    folder: Path, settings: ModelConfig, weights: Weights, as_family: bool = True
) -> tuple[dict[str, Supply], torch.dtype]:
    """Collect the dense tensors of a checkpoint by its family's names or else the bench's, and the base's dtype.

    Raises ValueError where they are not what the variant computes with.
    """
    import torch

    from hemorrhage.models.folder import dtype_of

    reason = plain_problem(settings)
    if reason:
        raise ValueError(reason)
    name = settings.get("dtype") or settings.get("torch_dtype")
    if (settings.get("hemorrhage") or {}).get("form") == "gguf_file":
        return _from_gguf(folder), getattr(torch, name or "float32")
    supplies = _from_safetensors(weights, settings)
    if as_family and LAYOUT in (settings.get("hemorrhage") or {}):
        supplies = {name: _joined(made, supplies) for name, made in to_family(folder, supplies).items()}
    return supplies, getattr(torch, name) if name else dtype_of(weights)


def _joined(made: Joined, supplies: dict[str, Supply]) -> Supply:
    """Join a tensor of the family from the bench's tensors that it is made of."""
    import torch

    sources = [supplies[name] for name in made.sources]
    shape = made.join([torch.empty(source.shape, device="meta") for source in sources]).shape
    return Supply(tuple(shape), lambda: made.join([source.load() for source in sources]))


def _from_gguf(folder: Path) -> dict[str, Supply]:
    from transformers import AutoConfig

    from hemorrhage.models.formats.gguf_file import FILE, entries_of

    entries = entries_of(folder / FILE, AutoConfig.from_pretrained(folder, local_files_only=True))
    return {name: Supply(entry.shape, entry.values) for name, entry in entries.items()}


def _from_safetensors(weights: Weights, settings: ModelConfig) -> dict[str, Supply]:
    from hemorrhage.models.formats import reader

    names = weights.names()
    layers = {
        name.removesuffix(f".{suffix}") for suffix in reader.FORMAT_OF_SUFFIX for name in names if _ends(name, suffix)
    }
    plain: list[str] = []
    of_layer: dict[str, list[str]] = {}
    for name in names:
        layer = next((parent for parent in _parents(name) if parent in layers), None)
        if layer is None or name == f"{layer}.bias":
            plain.append(name)
        else:
            of_layer.setdefault(layer, []).append(name)

    def form(layer: str) -> FormattedLinear:
        stored = {name: weights.tensor(name) for name in of_layer[layer]}
        return reader.read(stored, settings.get("quantization_config"))[1][layer]

    supplies = {name: Supply(tuple(weights.shape(name)), partial(weights.tensor, name)) for name in plain}
    for layer in of_layer:
        made = form(layer)
        if made.inputs:
            raise ValueError(ROUNDS_INPUTS)
        shape = (made.out_features, made.in_features)
        supplies[f"{layer}.weight"] = Supply(shape, partial(_product, form, layer), partial(form, layer))
    return supplies


def _product(form: Callable[[str], FormattedLinear], layer: str) -> Tensor:
    return form(layer).dense()


def _parents(name: str) -> Iterator[str]:
    """Yield ``a`` and ``a.b`` of ``a.b.c``."""
    for index, letter in enumerate(name):
        if letter == ".":
            yield name[:index]


def _ends(name: str, suffix: str) -> bool:
    return name.endswith(f".{suffix}")


def _write_config(settings: ModelConfig, out: Path) -> None:
    text = json.dumps(settings, indent=2, sort_keys=True)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")


def _copy(folder: Path, out: Path, wanted: Callable[[Path], bool]) -> None:
    """Copy the files that other programs read and that are not in ``out`` already."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in OWN_FILES and wanted(file) and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)


@contextmanager
def _writing_file(out: Path) -> Iterator[Path]:
    """Yield a name next to ``out`` that becomes ``out`` when the block ends without an exception."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f"{out.name}.part-{os.getpid()}")
    try:
        yield scratch
        scratch.rename(out)
    finally:
        scratch.unlink(missing_ok=True)
