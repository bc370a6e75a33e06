"""A model that somebody else altered and published: a folder of safetensors, or a GGUF file.

Nothing is computed: the published file is the variant. Its format, settings and bits are read from it. What it does not
alter (norms, embeddings) is compared with the base, so that a file that was made from another model is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.compress.info import MethodInfo
from hemorrhage.compress.method import Alteration, Context, Json, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.models.sources.published import fetch, is_adapter, quantization_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.models.published import Published

NAME = re.compile(r"[^a-z0-9_.]+")


class HubFile(BaseModel):
    """A repository of the Hugging Face hub at a pinned commit, or one ``file`` of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.id}/{self.file}" if self.file else self.id


def file_name(files: str | HubFile | Mapping[str, str]) -> str:
    """Return what a published model is called: its file or folder without the path."""
    if isinstance(files, Mapping):
        files = f"{files.get('id')}/{files.get('file') or ''}"
    return Path(str(files).rstrip("/")).name.removesuffix(".gguf")


class Settings(Base):
    """Which files: a path, or a repository of the hub."""

    axis: ClassVar[str] = "bits"
    severity_field: ClassVar[str] = "files"
    words: ClassVar[Mapping[str, Wording]] = {"files": file_name}
    in_names: ClassVar[Mapping[str, Callable[[object], str]]] = {
        "files": lambda value: NAME.sub("-", file_name(value).lower()).strip("-.")  # type: ignore[arg-type]
    }
    paths: ClassVar[tuple[str, ...]] = ("files",)

    files: str | HubFile

    @property
    def severity(self) -> float:
        """Unknown before the file is read; the manifest has its bits per weight."""
        return 0.0

    @property
    def point(self) -> object:
        """Each file is a point of the curve of its own."""
        return self.files

    @property
    def changes_weights(self) -> bool:
        """A published file may be the base itself, in another format that loses nothing."""
        return False

    @property
    def modules(self) -> tuple[str, ...]:
        """The module that reads the layers of a folder."""
        from hemorrhage.models.formats.published import READERS

        folder = Path(str(self.files))
        if isinstance(self.files, HubFile) or not (folder / "config.json").is_file():
            return ()
        reader = READERS.get(str(quantization_of(folder).get("quant_method")))
        return () if reader is None else (reader,)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Read the published model, and compare it with the base ``model``."""
    from hemorrhage.compress.checks import lineage
    from hemorrhage.models import adapter
    from hemorrhage.models.published import read, vocabulary

    files = settings.files
    path = Path(files) if isinstance(files, str) else fetch(files.id, files.revision, files.file)
    published = adapter.read(path, context.base) if context.base and is_adapter(path) else read(path)
    cut = lineage.cut_padding(published.model, model)
    made_from = lineage.compare(published.model, model)
    settings_differ = lineage.compare_settings(published.model.config, model.config)
    tokens = lineage.compare_tokens(published.tokens, vocabulary(context.base) if context.base else None)
    notes = [*published.notes, *filter(None, [cut, settings_differ, tokens])]
    return Alteration(
        blocks=made_from.blocks,
        model=published.model,
        equivalent_transform="scaled" if made_from.verdict == "scaled" else "",
        entries={**measured(published, context.base), "lineage": made_from.as_json(), "notes": notes},
    )


def measured(published: Published, base: Path | None) -> dict[str, Json]:
    """Return what the manifest says of a published file: its format, and its bits as they lie in the file."""
    from hemorrhage.compress.checks.size import stored_bits
    from hemorrhage.models.folder import dense_sizes
    from hemorrhage.models.formats.storage import formatted_layers
    from hemorrhage.models.linears import linears_of
    from hemorrhage.models.weights import Weights

    model = published.model
    layers = {*linears_of(model, missing_ok=True), *formatted_layers(model)}
    sizes = dense_sizes(model)
    in_layers = sum(size for name, size in sizes.items() if name.removesuffix(".weight") in layers)
    of_base = stored_bits(Weights(base)) if base else published.bits
    layer_bits = published.layer_bits / max(in_layers, 1)
    return {
        "storage": published.storage,
        # Files of one format are a curve: bits of another format do other damage.
        "identity": json.dumps({"format": format_of(published.storage)}),
        "curve": format_of(published.storage),
        "types": dict(published.types),
        "disk_bytes": published.bytes,
        "effective_bits": published.bits / sum(sizes.values()),
        "layer_bits": layer_bits,
        "severity": layer_bits,
        "size_ratio": published.bits / of_base,
        "engine": published.engine,
    }


def format_of(storage: str) -> str:
    """Return the name of a format without its settings."""
    return storage.partition(":")[0].partition(",")[0]


METHOD = Method(
    MethodInfo(
        title="Published by others",
        summary="a folder of safetensors or a GGUF file that somebody else made, judged against its base",
        examples=(),
        storage=(),
    ),
    Settings,
    alter,
)
