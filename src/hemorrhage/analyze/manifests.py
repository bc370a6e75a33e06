"""Types of the manifests that the analysis reads: the keys that it knows. docs/formats.md has all of them."""

from __future__ import annotations

from typing import Any, TypedDict

from hemorrhage.runtime.artifact import Manifest as Manifest


class ModelSource(TypedDict, total=False):
    """Where a base comes from: the wheel ``name``, the hub's ``id``, the ``path`` of a folder, or the ``recipe``."""

    source: str
    name: str
    id: str
    path: str
    recipe: str


class QuantizedBase(TypedDict):
    """The storage format that the base was quantized to before the study, and its bytes."""

    type: str
    bytes: int


class Calibration(TypedDict, total=False):
    """The calibration data that a variant read; ``seed``: of the draw."""

    corpora: list[str]
    tokens: int
    seed: int
    experts_without_tokens: list[str]


class Lineage(TypedDict):
    """Whether a published model was made from the base (hemorrhage.compress.checks.lineage), by how many tensors."""

    verdict: str
    compared: int
    differing: list[str]


class CheckpointManifest(Manifest, total=False):
    """A base model or an altered one. ``on``: the variant that was altered further, None for the base."""

    model: ModelSource
    quantized_before: QuantizedBase | None
    silent_blocks: list[int]
    sweep: str
    family: str
    method: str
    method_info: dict[str, Any]
    settings: dict[str, Any]
    severity: float | None
    severity_field: str
    axis: str | None
    curve: str
    curve_defaults: dict[str, str]
    identity: str
    label: str
    seed: int | None
    on: str | None
    is_control: bool
    redrawn: bool
    can_be_shuffled: bool
    calibrated: bool
    calibration: Calibration | None
    second_order: bool
    statistics: str
    layers: int
    blocks: list[int]
    experts: dict[str, list[int]]
    disk_bytes: int
    stored_bytes: int
    effective_bits: float
    layer_bits: float
    mask_bits: float | None
    size_ratio: float
    parameters: int
    sparsity: float
    changed: float
    theoretical: str
    engine: str
    storage: str
    types: dict[str, int]
    lineage: Lineage
    notes: list[str]


class Corpus(TypedDict):
    """An evaluated corpus: how it was cut and scored, and the digest of its text."""

    protocol: str
    sha256: str


class DiagnosedWindows(TypedDict, total=False):
    """The windows that the diagnostics read."""

    corpus: str
    protocol: str
    sha256: str


class Task(TypedDict, total=False):
    """A task: what guessing and the best constant answer (``floor``) reach, how it was scored, the items' digest."""

    chance: float
    floor: float | None
    protocol: str
    sha256: str


class Scores(TypedDict):
    """Of each window of a split: nats per token, and Min-K%++."""

    nll: list[float]
    min_k: list[float]


class Membership(TypedDict):
    """What the base model knows of an evaluated corpus (hemorrhage.evaluate.membership)."""

    overlap: float
    evaluation: Scores
    calibration: Scores


class OpenTexts(TypedDict):
    """Texts that are continued: their number, the tokens given, and the tokens generated."""

    items: int
    prefix: int
    new_tokens: int


class CorrectionSpec(TypedDict):
    """Settings of the correct step that its rows name."""

    open_ended: OpenTexts


class EngineFields(TypedDict):
    """The engine that a model was measured in; ``title``: for people."""

    name: str
    title: str
    version: str


class Conditions(TypedDict):
    """How the prompts of a data set were put: SHA-256 of their chat template, None without one; the worked examples
    that were shown; the most tokens of a text."""

    chat_template: str | None
    shots: int
    new_tokens: int


class Distinct(TypedDict):
    """Texts of a data set's prompts, by all strategies and draws, and how many of them are different."""

    texts: int
    distinct: int


class MeasurementManifest(Manifest, total=False):
    """What was measured on a model. ``gaps``: part -> why it was left out. ``protocol``:
    of the one corpus, or by data set; ``conditions`` of a decoding sweep, by data set. ``seconds_per_token``: of a text
    under each correction."""

    corpora: dict[str, Corpus]
    tasks: dict[str, Task]
    diagnostics: DiagnosedWindows
    membership: dict[str, Membership]
    datasets: dict[str, Task]
    gaps: dict[str, str]
    protocol: str | dict[str, str]
    conditions: dict[str, Conditions]
    distinct: dict[str, Distinct]
    seed: int | None
    corpus: str
    sha256: str
    spec: CorrectionSpec
    seconds_per_token: dict[str, float]
    engine: EngineFields
    facts: dict[str, str]


class Cost(TypedDict, total=False):
    """The content of cost.json: tokens per second of each repetition, bytes, and the settings they depend on."""

    prefill: list[float]
    decode: list[float]
    peak_bytes: int | None
    kv_bytes: int | None
    kv_bytes_formula: int | None
    batch: int
    length: int
    new_tokens: int
    threads: int
    dtype: str
    peak_of: str
    theoretical: str
