"""The kinds of output, a row each: what makes one, from what, with which settings, and what that costs.

Everything that has to know the output graph reads it here: the plan (addresses, gc, invalidate, failed),
rules/outputs.smk (a rule for each row, its inputs, its command), the cost model (which jobs wait for which, how much
work each is, which may use a GPU), and the analysis (which folders it is given). A test holds dvc.yaml to these rows.

A new kind of output is a row here and the module of its step. A step is run as ``python -m MODULE OUT``, with an option
for each input that has outputs (``--base DIR``, ``--texts DIR...``) and one for each of its arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hemorrhage.compress.catalogue import module_of
from hemorrhage.data.benchmarks import own_programs
from hemorrhage.data.source import as_json
from hemorrhage.data.tasks.own import identity as identity_of_questions
from hemorrhage.data.texts.repositories import identity
from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.models.sources import published
from hemorrhage.models.sources.path import digest_of_adopted
from hemorrhage.runtime.address import Json, JsonValue, address
from hemorrhage.study import params as config
from hemorrhage.study.design import Design
from hemorrhage.study.recipes import Recipe, parameters, training_operations
from hemorrhage.study.registry import CODE_TASKS, HARNESS_TASKS, OPEN_ENDED_TASKS, TASKS
from hemorrhage.study.screening import SCREENED
from hemorrhage.study.work import Load
from hemorrhage.train.packages import PACKAGES_OF, versions

Key = tuple[str, str]
"""The kind and the name of an output."""

FINGERPRINTS = Path(".snakemake/fingerprints.json")

BRACKET: Key = ("brackets", "study")
"""The output that adds points to the sweeps."""

BASE, SIBLING = "base", "sibling_model"
"""Names of the models that are not variants: the base, and the other model of its family."""


@dataclass(frozen=True)
class Input:
    """Outputs of ``kinds`` that a step is given: those of ``outputs`` for an output of that name.

    What is not read only comes first: it is no part of the address, and the step is not given it.
    """

    kinds: tuple[str, ...]
    outputs: Callable[[Design, str], list[Key]]
    is_read: bool = True


def _nothing(_design: Design, _name: str) -> Json:
    return {}


def _no_code(_design: Design, _name: str) -> list[str]:
    return []


def _no_work(_load: Load, _name: str) -> float:
    return 0.0


@dataclass(frozen=True)
class Kind:
    """A kind of output, which lies in ``data/<name>/<name of the output>/<address>``.

    ``rule`` makes it with the module ``step`` (of an output's name, where that depends on it), for the stage ``stage``
    of dvc.yaml. ``names``: of its outputs in a design; ``inputs``: option of the step -> what it is given.
    ``settings`` are what an output depends on besides inputs and code, and so is ``code``, modules that the step
    imports by name. ``arguments`` are the further options of its command; without them ``--spec`` has the settings.
    """

    name: str
    rule: str
    stage: str
    step: str | Callable[[str], str]
    names: Callable[[Design], Iterable[str]]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    settings: Callable[[Design, str], Json] = _nothing
    arguments: Callable[[Design, str], Json] | None = None
    code: Callable[[Design, str], list[str]] = _no_code
    on_gpu: Callable[[Design, str], bool] | None = None
    """True where a job has use for a GPU. None: the step runs no model, and starts without the libraries for it."""
    rule_on_gpu: str = ""
    """The rule of those that do where others of the kind don't: a cluster gives all jobs of a rule the same."""
    arithmetic: Callable[[Load, str], float] = _no_work
    stored: Callable[[Load, str], float] = _no_work
    """A job's operations and what it writes: see hemorrhage.study.work.Work."""
    priority: int = 0
    is_awaited: bool = False
    """Most of the run waits for it: threads shorten the run, where others would only take each other's cores."""
    by_blocks: bool = False
    """A model that is larger than ``evaluate.memory_gb`` is read block by block."""
    costs_like: str = "evaluations"
    """The kind whose costs are used while no run of this one was fitted."""
    of_models: bool = False
    """Its outputs are of the base and of variants: they fail and are invalidated with their variant."""
    model: Callable[[str], str] = str
    """Of those, the model that the output of a name is of."""
    is_analyzed: bool = False
    """The analysis reads it."""
    extends_plan: bool = False
    """Its output adds others to the plan: Snakemake's rule is a checkpoint, and stands in a file of its own."""

    def module(self, name: str) -> str:
        """Return the module that makes an output of this kind."""
        return self.step if isinstance(self.step, str) else self.step(name)

    def options(self, design: Design, name: str) -> Json:
        """Return the options of the step's command other than its inputs."""
        return {"spec": self.settings(design, name)} if self.arguments is None else self.arguments(design, name)

    def needs(self, design: Design, name: str) -> list[Key]:
        """List all outputs that have to exist before an output of this kind can be made."""
        return list(dict.fromkeys(key for each in self.inputs.values() for key in each.outputs(design, name)))


# Names of outputs.


def _siblings(design: Design) -> list[str]:
    return [] if design.params.decode.sibling_model is None else [SIBLING]


def _models(design: Design) -> list[str]:
    return [BASE, *design.variants]


def _gradients(design: Design) -> list[str]:
    return sorted({gradients for name in design.variants for gradients in gradients_of(design, name)})


def _decoded(design: Design) -> list[str]:
    return [BASE, *design.params.decode.variants, *_siblings(design)]


def _served(design: Design) -> list[str]:
    """Name each model in each engine: ``llama_cpp.gptq-4``; of a server, its one model."""
    engines = design.params.evaluate.engines
    chosen = list(design.variants) if engines.variants == "all" else engines.variants
    named = [f"{engine}.{model}" for engine in engines.installed for model in (BASE, *chosen)]
    return named + [f"{server.label}.{server.variant}" for server in engines.servers]


def server_of(design: Design, name: str) -> config.Server | None:
    """Return the server of an output's name; None of an engine of this machine."""
    label = name.partition(".")[0]
    return next((server for server in design.params.evaluate.engines.servers if server.label == label), None)


def _engine_of(name: str) -> Engine:
    return ENGINES[name.partition(".")[0]]


def _served_model(name: str) -> str:
    return name.partition(".")[2]


def _from_nothing(design: Design) -> list[Recipe]:
    """Return the recipes of the run that read the training text."""
    return [each.root for each in design.trainings.values() if each.reads_text]


# Inputs from other kinds.


def _tokenizer(design: Design, name: str) -> list[Key]:
    trained = design.trainings[name]
    return [("tokenizers", trained.root.tokenizer)] if trained.reads_text else []


def _tuned_from(design: Design, name: str) -> list[Key]:
    parent = design.trainings[name].parent
    return [] if parent is None else [("trainings", parent)]


def _trained(model: config.AnyModel) -> list[Key]:
    return [("trainings", model.training)] if isinstance(model, config.TrainedModel) else []


def _calibration_name(design: Design, seed: int | None = None) -> str:
    """Name a calibration set: the study's own, or with its seed another draw."""
    name = "-".join(design.params.calibrate.corpora)
    return name if seed is None else f"{name}.{seed}"


def _calibration_seeds(design: Design) -> dict[str, int]:
    """Return the seed of each calibration set by its name, the study's own first."""
    own = {_calibration_name(design): design.params.calibrate.seed}
    others = sorted({each.calibration_seed for each in design.variants.values() if each.calibration_seed is not None})
    return own | {_calibration_name(design, seed): seed for seed in others}


def model_of(name: str) -> Key:
    """Return the output that is the model of this name: the base, its sibling, or a variant's checkpoint."""
    kinds = {BASE: "base", SIBLING: "sibling_models"}
    return kinds.get(name, "checkpoints"), name


def measures(name: str) -> Key:
    """Return the model under which a model's texts are measured: the sibling, which may have other tokens, itself."""
    return model_of(SIBLING if name == SIBLING else BASE)


def _prepared(task: str, kind: str) -> Key:
    """Return the output that holds a task of the decoding sweep; a name may be a corpus and a task."""
    if kind == "closed_ended":
        return ("tasks" if task in TASKS else "benchmarks"), config.prepared_task(task)
    return ("benchmarks" if task in OPEN_ENDED_TASKS else "texts"), task


def _statistics(design: Design, name: str) -> list[Key]:
    needed = needs_calibration(design, name)
    return [("calibrations", _calibration_name(design, design.variants[name].calibration_seed))] if needed else []


def _parent(design: Design, name: str) -> list[Key]:
    on = design.variants[name].on
    return [] if on is None else [("checkpoints", on)]


BASE_MODEL = Input(("base",), lambda _design, _name: [model_of(BASE)])
MODEL = Input(("base", "checkpoints"), lambda _design, name: [model_of(name)])
REFERENCE = Input(("references",), lambda _design, _name: [("references", BASE)])
CALIBRATION_TEXTS = Input(
    ("texts",), lambda design, _name: [("texts", each) for each in design.params.calibrate.corpora]
)
TEXTS = Input(("texts",), lambda design, _name: [("texts", each) for each in design.params.evaluate.corpora])
PROBES = Input(("tasks",), lambda design, _name: [("tasks", each) for each in design.params.evaluate.tasks])


FRESH_TASKS = Input(("fresh_tasks",), lambda design, _name: [("fresh_tasks", each) for each in _fresh_tasks(design)])


def needs_calibration(design: Design, variant: str) -> bool:
    """Tell whether a variant's method reads the calibration statistics."""
    return bool(design.variants[variant].settings.statistics)


def gradients_of(design: Design, variant: str) -> list[str]:
    """Name the gradients that a variant's method reads."""
    read = design.variants[variant].settings.statistics
    return [config.GRADIENTS[kind] for kind in read if kind in config.GRADIENTS]


# Settings that an output depends on, and arguments of its step, as plain JSON.


def _source(chosen: config.AnyModel) -> Json:
    if isinstance(chosen, config.PathModel):
        return {"source": "path", "sha256": digest_of_adopted(Path(chosen.path), FINGERPRINTS)}
    if isinstance(chosen, config.TrainedModel):
        # Which recipe is what the input says.
        return {"source": "trained", "at": chosen.at}
    return chosen.model_dump(mode="json")


def _sibling(design: Design) -> config.AnyModel:
    sibling = design.params.decode.sibling_model
    assert sibling is not None, "named by _siblings alone"
    return sibling.model


def _reader(source: str) -> list[str]:
    return [f"hemorrhage.models.sources.{source}"]


def tokens_needed(design: Design, corpus: str) -> dict[str, int]:
    """Count the tokens that the run takes from each split of a corpus; of a user's file the windows, and their size."""
    params = design.params
    needed = {"calibration": 0, "evaluation": 0}
    mixed = params.calibrate.corpora
    if corpus in mixed:
        needed["calibration"] = -(-params.calibrate.samples // len(mixed)) * params.calibrate.length
    if corpus in params.evaluate.corpora:
        windows = 2 if params.evaluate.windows == "all" else params.evaluate.windows
        if corpus in {each.name for each in params.evaluate.files}:
            # They end where a conversation does, so that tokens don't tell their number.
            needed |= {"windows": windows, "window": params.evaluate.window}
        else:
            # Of a confirmation as many as are left, and at least two.
            fresh = params.screen.windows + 2 if params.screen.confirm.windows else 0
            needed["evaluation"] = (windows + fresh) * params.evaluate.window
    for entry in params.decode.open_ended:
        if corpus == entry.task:
            needed["evaluation"] = max(needed["evaluation"], entry.items * (entry.prefix or 0))
    return needed


def _text(design: Design, corpus: str) -> Json:
    return {"corpus": corpus, "source": identity(corpus, config.data_of(corpus, design.params), FINGERPRINTS)}


def _text_arguments(design: Design, corpus: str) -> Json:
    data = config.data_of(corpus, design.params)
    return {"corpus": corpus, "data": as_json(data), "needs": tokens_needed(design, corpus)}


PROBES_STEP, FRESH_STEP, OWN_STEP = (f"hemorrhage.data.tasks.{name}" for name in ("probes", "fresh", "own"))
"""The steps that make the items of a task: of a probe, fresh ones of a probe, and of a file of the user."""


def _task(design: Design, task: str) -> Json:
    own = design.params.evaluate.task_files.get(task)
    if own is not None:
        return {**_own_task(own, design), **identity_of_questions(Path(own.file), FINGERPRINTS)}
    return {"task": task, "items": design.params.data.items, "seed": design.params.data.seed}


def _own_task(own: config.TaskFile, design: Design) -> dict[str, JsonValue]:
    return {"task": own.name, "items": own.items, "skip": 0, "seed": design.params.data.seed}


def _task_arguments(design: Design, task: str) -> Json:
    own = design.params.evaluate.task_files.get(task)
    return _task(design, task) if own is None else {**_own_task(own, design), "file": own.file}


def _benchmark(design: Design, task: str) -> Json:
    own = design.params.evaluate.code_tasks.files.get(task)
    if own is not None:
        return {"task": task, "source": own_programs.identity(Path(own.file), own.stop, FINGERPRINTS)}
    data = config.benchmark_data(design.params)
    return {"task": task, "source": config.benchmark_step(task).identity(task, data, FINGERPRINTS)}


def _benchmark_arguments(design: Design, task: str) -> Json:
    own = design.params.evaluate.code_tasks.files.get(task)
    if own is not None:
        return {"task": task, "file": own.file, "stop": json.dumps(own.stop)}
    return {"task": task, "data": as_json(config.benchmark_data(design.params))}


def _benchmark_step(task: str) -> str:
    named = (*HARNESS_TASKS, *CODE_TASKS, *OPEN_ENDED_TASKS)
    return str((config.benchmark_step(task) if task in named else own_programs).__name__)


def _reference(design: Design, _name: str) -> Json:
    evaluate = design.params.evaluate
    diagnostics = evaluate.diagnostics.model_dump(mode="json", exclude={"ablate"})
    return {"dtype": evaluate.dtype, "window": evaluate.window, "windows": evaluate.windows, "diagnostics": diagnostics}


def _screen_reference(design: Design, _name: str) -> Json:
    return _of_stage(design, "screening", design.params.screen.windows)


def _of_stage(design: Design, stage: str, windows: int) -> Json:
    """Return the settings of a reference for language and probes alone."""
    evaluate = design.params.evaluate
    none = {"windows": 0, "window": evaluate.diagnostics.window}
    return {"dtype": evaluate.dtype, "window": evaluate.window, "windows": windows, "diagnostics": none, "stage": stage}


def _confirmed(design: Design) -> list[str]:
    return list(design.confirmed) if design.params.screen.confirm.windows else []


def _confirms(design: Design) -> bool:
    """Return whether a confirmation may come. What it needs of the base is made before it is known of which variants:
    it would keep them all waiting."""
    return bool(design.screened and design.params.screen.confirm.windows)


def _fresh_tasks(design: Design) -> list[str]:
    asked = _confirms(design) and design.params.screen.confirm.items
    return list(design.params.evaluate.tasks) if asked else []


def _confirmation_reference(design: Design, _name: str) -> Json:
    screen, evaluate = design.params.screen, design.params.evaluate
    return {
        **_of_stage(design, "confirmation", screen.confirm.windows),
        "avoided": [int(evaluate.windows), screen.windows],
    }


def _fresh_task(design: Design, task: str) -> Json:
    own = design.params.evaluate.task_files.get(task)
    if own is not None:
        return {**_fresh_own_task(own, design), **identity_of_questions(Path(own.file), FINGERPRINTS)}
    data = design.params.data
    return {"task": task, "items": design.params.screen.confirm.items, "skip": data.items, "seed": data.seed}


def _fresh_own_task(own: config.TaskFile, design: Design) -> dict[str, JsonValue]:
    assert own.items != "all", "refused where a confirmation asks for more"
    return {**_own_task(own, design), "items": design.params.screen.confirm.items, "skip": own.items}


def _fresh_task_arguments(design: Design, task: str) -> Json:
    own = design.params.evaluate.task_files.get(task)
    return _fresh_task(design, task) if own is None else {**_fresh_own_task(own, design), "file": own.file}


def _bracket(design: Design, _name: str) -> Json:
    screen, budget = design.params.screen, design.params.analyze.budget.model_dump(exclude_none=True)
    return {
        "budget": {key: limit for key, limit in budget.items() if key in SCREENED},
        "windows": screen.windows,
        "allowance": screen.allowance,
        "curves": [curve.as_json() for curve in design.curves],
    }


def _calibration(design: Design, name: str) -> Json:
    own = design.params.calibrate.model_dump(mode="json", exclude={"corpus"})
    return {**own, "seed": _calibration_seeds(design)[name]}


def _alteration(design: Design, variant: str) -> Json:
    chosen = design.variants[variant]
    settings = chosen.settings.model_dump(mode="json")
    # Of a file of the user the content counts, wherever it lies.
    contents: dict[str, JsonValue] = {
        key: published.digest(Path(settings[key]), FINGERPRINTS)
        for key in chosen.settings.paths
        if isinstance(settings[key], str)
    }
    settings.update(contents)
    return {"method": chosen.method, "settings": settings, "seed": chosen.seed, **_redrawn(chosen)}


def _redrawn(chosen: config.Variant) -> Json:
    return {} if chosen.calibration_seed is None else {"calibration_seed": chosen.calibration_seed}


def _alteration_arguments(design: Design, variant: str) -> Json:
    chosen = design.variants[variant]
    settings = chosen.settings.model_dump(mode="json")
    named: Json = {"sweep": chosen.sweep, "on": chosen.on, **_redrawn(chosen)}
    return {"variant": variant, "spec": {"method": chosen.method, "settings": settings, "seed": chosen.seed, **named}}


def _alteration_code(design: Design, variant: str) -> list[str]:
    chosen = design.variants[variant]
    return [module_of(chosen.method), *chosen.settings.modules]


def _evaluation(design: Design, name: str) -> Json:
    return {"ablate": name in design.params.evaluate.diagnostics.ablate}


def _evaluation_arguments(design: Design, name: str) -> Json:
    memory = design.params.evaluate.memory_gb
    return {"variant": name, "spec": _evaluation(design, name), "memory_gb": memory}


def _serving(design: Design, name: str) -> Json:
    if server := server_of(design, name):
        return server.as_measured()
    engine = _engine_of(name)
    packages = "" if engine.is_built_in else address(engine.requirements.read_text(encoding="utf-8"))
    return {**engine.as_json(), "packages": packages}


def _serving_arguments(design: Design, name: str) -> Json:
    memory = design.params.evaluate.memory_gb
    server = server_of(design, name)
    serves: Json = {"server": server.as_asked()} if server else {"engine": _engine_of(name).as_json()}
    return {"variant": _served_model(name), **serves, "memory_gb": memory}


def _exported(load: Load, name: str) -> float:
    return 0.0 if server_of(load.design, name) else load.exported(_served_model(name))


def _serving_code(design: Design, name: str) -> list[str]:
    if server_of(design, name):
        return []
    # Both are run by an engine's own Python, which imports nothing of this package.
    return [f"hemorrhage.engines.workers.{_engine_of(name).name}", "hemorrhage.engines.workers.host"]


def _harness(design: Design, _name: str) -> Json:
    harness = design.params.evaluate.harness
    return {**harness.model_dump(mode="json", exclude={"tasks"}), "seed": design.params.data.seed}


def _code_tasks(design: Design, _name: str) -> Json:
    code = design.params.evaluate.code_tasks
    named = code.model_dump(mode="json", exclude={"problems"})
    return {**named, "tasks": code.tasks, "seed": design.params.data.seed}


def _runs_code(design: Design) -> bool:
    return any(entry.task in CODE_TASKS for entry in design.params.decode.closed_ended)


def _decoding_spec(design: Design) -> Json:
    decode, code = design.params.decode, design.params.evaluate.code_tasks
    limits = {"seconds": code.seconds, "memory_mb": code.memory_mb}
    return {
        "strategies": {name: strategy.as_json() for name, strategy in design.strategies.items()},
        "closed_ended": [entry.model_dump(mode="json") for entry in decode.closed_ended],
        "open_ended": [entry.model_dump(mode="json") for entry in decode.open_ended],
        "code_tasks": limits if _runs_code(design) else None,
        "batch": decode.batch,
        "seed": decode.seed,
        "draws": decode.draws,
        "random_numbers": decode.random_numbers,
        "chat": decode.chat,
    }


def _decoding(design: Design, _name: str) -> Json:
    amateurs = {strategy.amateur for strategy in design.strategies.values() if strategy.amateur}
    files = [digest_of_adopted(Path(folder), FINGERPRINTS) for folder in sorted(amateurs)]
    return {**_decoding_spec(design), "amateurs": files}


def _decoding_code(design: Design, _name: str) -> list[str]:
    used = sorted({strategy.strategy for strategy in design.strategies.values()})
    sandbox = ["hemorrhage.sandbox.runner"] if _runs_code(design) else []
    return [*(f"hemorrhage.decode.strategies.{strategy}" for strategy in used), *sandbox]


def _corrected_tasks(design: Design) -> list[config.ClosedEnded]:
    """Return the decoding sweep's tasks that corrections are judged on: those whose answers no program has to run."""
    return [entry for entry in design.params.decode.closed_ended if entry.task not in CODE_TASKS]


def _correction(design: Design, _name: str) -> Json:
    mitigate, evaluate = design.params.mitigate, design.params.evaluate
    # Of a file of the user not every token counts.
    others = [name for name in evaluate.corpora if name not in {each.name for each in evaluate.files}]
    return {
        **mitigate.model_dump(mode="json", exclude={"variants", "smallest_effect"}),
        "corpora": list(dict.fromkeys([mitigate.corpus, *others])),
        "closed_ended": [entry.model_dump(mode="json") for entry in _corrected_tasks(design)],
    }


def _with_memory(settings: Callable[[Design, str], Json]) -> Callable[[Design, str], Json]:
    """Make the arguments of a step that reads a large model block by block: the settings, and its memory."""
    return lambda design, name: {
        "spec": settings(design, name),
        "memory_gb": design.params.evaluate.memory_gb,
    }


def _screened_arguments(design: Design, name: str) -> Json:
    return {"variant": name, **_with_memory(lambda _design, _name: NOTHING_ABLATED)(design, name)}


def _of_variant(settings: Callable[[Design, str], Json]) -> Callable[[Design, str], Json]:
    """Make the arguments of a step that measures a model: its name, and the settings."""
    return lambda design, name: {"variant": name, "spec": settings(design, name)}


NOTHING_ABLATED: Json = {"ablate": False}


def _trained_operations(design: Design, name: str) -> float:
    trained = design.trainings[name]
    return training_operations(trained.recipe, trained.root)


def _always(_design: Design, _name: str) -> bool:
    return True


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "training_texts",
            rule="training_text",
            stage="calibrate",
            step="hemorrhage.train.corpus",
            names=lambda design: sorted({recipe.text for recipe in _from_nothing(design)}),
            settings=lambda _design, name: {"versions": versions(PACKAGES_OF[name])},
            priority=100,
            is_awaited=True,
            costs_like="texts",
        ),
        Kind(
            "tokenizers",
            rule="tokenizer",
            stage="calibrate",
            step="hemorrhage.train.tokenizer",
            names=lambda design: sorted({recipe.tokenizer for recipe in _from_nothing(design)}),
            inputs={
                "text": Input(("training_texts",), lambda _design, name: [("training_texts", name.rpartition("-")[0])]),
            },
            settings=lambda _design, name: {"vocabulary": int(name.rpartition("-")[2])},
            priority=100,
            is_awaited=True,
            costs_like="texts",
        ),
        Kind(
            "trainings",
            rule="train",
            stage="calibrate",
            step="hemorrhage.train",
            names=lambda design: design.trainings,
            inputs={
                "tokenizer": Input(("tokenizers",), _tokenizer),
                "parent": Input(("trainings",), _tuned_from),
            },
            settings=lambda design, name: design.trainings[name].recipe.as_spec(),
            arithmetic=lambda load, name: _trained_operations(load.design, name),
            stored=lambda load, name: 2e-9 * parameters(load.design.trainings[name].root.config),
            priority=100,
            is_awaited=True,
            is_analyzed=True,
        ),
        Kind(
            "base",
            rule="base",
            stage="calibrate",
            step="hemorrhage.models",
            names=lambda _design: [BASE],
            inputs={"trained": Input(("trainings",), lambda design, _name: _trained(design.params.model))},
            settings=lambda design, _name: _source(design.params.model),
            arguments=lambda design, _name: {"spec": design.params.model.model_dump(mode="json")},
            code=lambda design, _name: _reader(design.params.model.source),
            stored=lambda load, _name: 1e-9 * load.shape.parameters,
            priority=100,
            is_awaited=True,
            of_models=True,
            is_analyzed=True,
        ),
        Kind(
            "sibling_models",
            rule="sibling_model",
            stage="calibrate",
            step="hemorrhage.models",
            names=_siblings,
            inputs={"trained": Input(("trainings",), lambda design, _name: _trained(_sibling(design)))},
            settings=lambda design, _name: _source(_sibling(design)),
            arguments=lambda design, _name: {"spec": _sibling(design).model_dump(mode="json")},
            code=lambda design, _name: _reader(_sibling(design).source),
            stored=lambda load, _name: 1e-9 * load.shape.parameters,
            priority=100,
            costs_like="base",
            is_analyzed=True,
        ),
        Kind(
            "texts",
            rule="text",
            stage="calibrate",
            step="hemorrhage.data.texts",
            names=lambda design: config.corpora(design.params),
            inputs={"base": BASE_MODEL},
            settings=_text,
            arguments=_text_arguments,
            priority=100,
        ),
        Kind(
            "tasks",
            rule="task",
            stage="calibrate",
            step=lambda task: PROBES_STEP if task in TASKS else OWN_STEP,
            names=lambda design: config.tasks(design.params),
            settings=_task,
            arguments=_task_arguments,
            priority=100,
        ),
        Kind(
            "benchmarks",
            rule="benchmark",
            stage="calibrate",
            step=_benchmark_step,
            names=lambda design: config.benchmark_names(design.params),
            settings=_benchmark,
            arguments=_benchmark_arguments,
            priority=100,
            costs_like="texts",
        ),
        Kind(
            "calibrations",
            rule="calibrate",
            stage="calibrate",
            step="hemorrhage.calibrate",
            names=_calibration_seeds,
            inputs={"base": BASE_MODEL, "texts": CALIBRATION_TEXTS},
            settings=_calibration,
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.calibration),
            # Second moments of the inputs: about half a float32 for each weight.
            stored=lambda load, _name: 1e-9 * load.shape.blocks,
            priority=90,
            is_awaited=True,
            is_analyzed=True,
        ),
        Kind(
            # A calibration that only some methods read: it is made when compression asks for it.
            "gradients",
            rule="gradients",
            stage="compress",
            step="hemorrhage.calibrate.gradients",
            names=_gradients,
            inputs={
                "base": BASE_MODEL,
                "calibration": Input(
                    ("calibrations",), lambda design, _name: [("calibrations", _calibration_name(design))]
                ),
            },
            settings=lambda _design, name: {"part": name},
            on_gpu=_always,
            arithmetic=lambda load, _name: 3 * load.shape.forward(load.calibration),
            stored=lambda load, _name: 2e-9 * load.shape.blocks,
            priority=80,
            is_awaited=True,
            costs_like="calibrations",
        ),
        Kind(
            "checkpoints",
            rule="compress",
            stage="compress",
            step="hemorrhage.compress",
            names=lambda design: design.variants,
            inputs={
                "base": BASE_MODEL,
                "parent": Input(("checkpoints",), _parent),
                "calibration": Input(("calibrations",), _statistics),
                "gradients": Input(
                    ("gradients",),
                    lambda design, name: [("gradients", gradients) for gradients in gradients_of(design, name)],
                ),
                "earlier": Input(
                    ("checkpoints",),
                    lambda design, name: [("checkpoints", each) for each in design.variants[name].after],
                    is_read=False,
                ),
            },
            settings=_alteration,
            arguments=_alteration_arguments,
            code=_alteration_code,
            on_gpu=lambda design, name: design.variants[name].settings.on_gpu,
            rule_on_gpu="compress_on_gpu",
            arithmetic=lambda load, name: load.alteration(name),
            stored=lambda load, name: load.stored(name),
            of_models=True,
            is_analyzed=True,
        ),
        Kind(
            "screen_references",
            rule="screen_reference",
            stage="compress",
            step="hemorrhage.evaluate.reference",
            names=lambda design: [BASE] if design.screened else [],
            inputs={"base": BASE_MODEL, "texts": TEXTS},
            settings=_screen_reference,
            arguments=_with_memory(_screen_reference),
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.screening()),
            priority=90,
            is_awaited=True,
            by_blocks=True,
            costs_like="references",
        ),
        Kind(
            "screens",
            rule="screen",
            stage="compress",
            step="hemorrhage.evaluate",
            names=lambda design: design.screened,
            inputs={
                "checkpoint": Input(("checkpoints",), lambda _design, name: [model_of(name)]),
                "base": BASE_MODEL,
                "reference": Input(("screen_references",), lambda _design, _name: [("screen_references", BASE)]),
            },
            settings=lambda _design, _name: NOTHING_ABLATED,
            arguments=_screened_arguments,
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.screening()),
            priority=70,
            by_blocks=True,
            of_models=True,
        ),
        Kind(
            BRACKET[0],
            rule="bracket",
            stage="compress",
            step="hemorrhage.bracket",
            names=lambda design: [BRACKET[1]] if design.screened else [],
            inputs={
                "base": BASE_MODEL,
                "screens": Input(("screens",), lambda design, _name: [("screens", each) for each in design.screened]),
                "checkpoints": Input(
                    ("checkpoints",), lambda design, _name: [("checkpoints", each) for each in design.screened]
                ),
            },
            settings=_bracket,
            priority=70,
            costs_like="texts",
            is_analyzed=True,
            extends_plan=True,
        ),
        Kind(
            "references",
            rule="reference",
            stage="evaluate",
            step="hemorrhage.evaluate.reference",
            names=lambda _design: [BASE],
            inputs={"base": BASE_MODEL, "texts": TEXTS, "tasks": PROBES},
            settings=_reference,
            arguments=_with_memory(_reference),
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.evaluation(blocks=1)),
            priority=90,
            is_awaited=True,
            by_blocks=True,
            is_analyzed=True,
        ),
        Kind(
            "evaluations",
            rule="evaluate",
            stage="evaluate",
            step="hemorrhage.evaluate",
            names=_models,
            inputs={"checkpoint": MODEL, "base": BASE_MODEL, "reference": REFERENCE, "tasks": PROBES},
            settings=_evaluation,
            arguments=_evaluation_arguments,
            on_gpu=_always,
            # The head is multiplied with the base model's states once more.
            arithmetic=lambda load, name: (
                load.shape.forward(load.evaluation(10 if name in load.design.params.evaluate.diagnostics.ablate else 1))
                + 2e-12 * load.windows() * load.shape.embedding
            ),
            by_blocks=True,
            of_models=True,
            is_analyzed=True,
        ),
        Kind(
            "fresh_tasks",
            rule="fresh_task",
            stage="evaluate",
            step=lambda task: FRESH_STEP if task in TASKS else OWN_STEP,
            names=_fresh_tasks,
            settings=_fresh_task,
            arguments=_fresh_task_arguments,
            costs_like="tasks",
        ),
        Kind(
            "confirmation_references",
            rule="confirmation_reference",
            stage="evaluate",
            step="hemorrhage.evaluate.reference",
            names=lambda design: [BASE] if _confirms(design) else [],
            inputs={"base": BASE_MODEL, "texts": TEXTS, "tasks": FRESH_TASKS},
            settings=_confirmation_reference,
            arguments=_with_memory(_confirmation_reference),
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.confirmation()),
            priority=90,
            is_awaited=True,
            by_blocks=True,
            costs_like="references",
        ),
        Kind(
            "confirmations",
            rule="confirm",
            stage="evaluate",
            step="hemorrhage.evaluate",
            names=_confirmed,
            inputs={
                "checkpoint": MODEL,
                "base": BASE_MODEL,
                "reference": Input(
                    ("confirmation_references",), lambda _design, _name: [("confirmation_references", BASE)]
                ),
                "tasks": FRESH_TASKS,
                "bracket": Input((BRACKET[0],), lambda _design, _name: [BRACKET], is_read=False),
            },
            settings=lambda _design, _name: NOTHING_ABLATED,
            arguments=_screened_arguments,
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.confirmation()),
            # The longest of their stage: begun early, they do not end alone.
            priority=60,
            by_blocks=True,
            of_models=True,
            is_analyzed=True,
        ),
        Kind(
            "served",
            rule="serve",
            stage="evaluate",
            step="hemorrhage.evaluate.served",
            names=_served,
            inputs={
                "checkpoint": Input(("base", "checkpoints"), lambda _design, name: [model_of(_served_model(name))]),
                "base": BASE_MODEL,
                "reference": REFERENCE,
            },
            settings=_serving,
            arguments=_serving_arguments,
            code=_serving_code,
            on_gpu=_always,
            # Our own reading of the file, and the engine's.
            arithmetic=lambda load, _name: 2 * load.shape.forward(load.windows()),
            stored=_exported,
            by_blocks=True,
            of_models=True,
            model=_served_model,
            is_analyzed=True,
        ),
        Kind(
            "harness",
            rule="harness",
            stage="evaluate",
            step="hemorrhage.evaluate.harness",
            names=lambda design: _models(design) if design.params.evaluate.harness.tasks else [],
            inputs={
                "checkpoint": MODEL,
                "base": BASE_MODEL,
                "benchmarks": Input(
                    ("benchmarks",),
                    lambda design, _name: [("benchmarks", task) for task in design.params.evaluate.harness.tasks],
                ),
            },
            settings=_harness,
            arguments=_of_variant(_harness),
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.harness()),
            of_models=True,
            is_analyzed=True,
        ),
        Kind(
            "code_tasks",
            rule="code_tasks",
            stage="evaluate",
            step="hemorrhage.evaluate.code_tasks",
            names=lambda design: _models(design) if design.params.evaluate.code_tasks.tasks else [],
            inputs={
                "checkpoint": MODEL,
                "base": BASE_MODEL,
                "benchmarks": Input(
                    ("benchmarks",),
                    lambda design, _name: [("benchmarks", task) for task in design.params.evaluate.code_tasks.tasks],
                ),
            },
            settings=_code_tasks,
            arguments=_of_variant(_code_tasks),
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.code_tasks()),
            of_models=True,
            is_analyzed=True,
        ),
        Kind(
            "decodes",
            rule="decode",
            stage="decode",
            step="hemorrhage.decode",
            names=_decoded,
            inputs={
                "checkpoint": Input(("base", "sibling_models", "checkpoints"), lambda _design, name: [model_of(name)]),
                "base": Input(("base", "sibling_models"), lambda _design, name: [measures(name)]),
                "closed_ended": Input(
                    ("tasks", "benchmarks"),
                    lambda design, _name: [
                        _prepared(entry.task, "closed_ended") for entry in design.params.decode.closed_ended
                    ],
                ),
                "open_ended": Input(
                    ("texts", "benchmarks"),
                    lambda design, _name: [
                        _prepared(entry.task, "open_ended") for entry in design.params.decode.open_ended
                    ],
                ),
            },
            settings=_decoding,
            arguments=_of_variant(lambda design, _name: _decoding_spec(design)),
            code=_decoding_code,
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.generation()),
            # The longest jobs: begun early, they do not end alone.
            priority=50,
            of_models=True,
            is_analyzed=True,
        ),
        Kind(
            "corrections",
            rule="mitigate",
            stage="mitigate",
            step="hemorrhage.mitigate",
            names=lambda design: design.params.mitigate.variants,
            inputs={
                "checkpoint": MODEL,
                "base": BASE_MODEL,
                "reference": REFERENCE,
                "closed_ended": Input(
                    ("tasks", "benchmarks"),
                    lambda design, _name: [_prepared(entry.task, "closed_ended") for entry in _corrected_tasks(design)],
                ),
            },
            settings=_correction,
            arguments=_of_variant(_correction),
            on_gpu=_always,
            arithmetic=lambda load, _name: load.shape.forward(load.correction()),
            priority=40,
            of_models=True,
            is_analyzed=True,
        ),
    )
}
"""All kinds, in an order in which they can be made."""

STAGES: dict[str, str] = {
    "calibrate": "calibrated",
    "compress": "compressed",
    "evaluate": "evaluated",
    "decode": "decoded",
    "mitigate": "mitigated",
}
"""Stage of dvc.yaml -> the rule that asks for everything of it."""


def stage_kinds(stage: str) -> list[Kind]:
    """List the kinds that a stage of dvc.yaml makes."""
    return [kind for kind in KINDS.values() if kind.stage == stage]


def analyzed_kinds() -> list[Kind]:
    """List the kinds that the analysis reads."""
    return [kind for kind in KINDS.values() if kind.is_analyzed]


def model_kinds() -> list[Kind]:
    """List the kinds whose outputs are of models, and so of variants."""
    return [kind for kind in KINDS.values() if kind.of_models]


ROWS_FILES = (
    "hemorrhage.parquet",
    "blocks.parquet",
    "metrics.json",
    "headline.json",
    "thresholds.json",
    "next.yaml",
    "claims.json",
    "flags.json",
    "doctor.json",
    "recommendation.json",
    "curves.csv",
    "front.csv",
    "layers.csv",
    "thresholds.csv",
    "decoding.csv",
    "decoding.json",
    "study.json",
)
"""Files that the analysis writes into reports/, next to provenance.json: everything with numbers."""

PAGE_FILES = ("index.html",)
"""Files that are drawn from them."""


def analysis(design: Design) -> Json:
    """Return the settings of the analysis."""
    params = design.params
    return {
        **params.analyze.model_dump(mode="json"),
        "calibration": params.calibrate.corpora,
        "smallest_effect": params.mitigate.smallest_effect,
    }


def is_aligned(design: Design) -> bool:
    """Tell whether the sibling model is the aligned one."""
    sibling = design.params.decode.sibling_model
    return sibling is not None and sibling.is_aligned
