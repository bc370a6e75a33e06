"""Which addresses move for which edit of params.yaml."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.bracket.content import Addition, Bracket
from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.evaluate.served_endpoint import Server
from hemorrhage.study import kinds
from hemorrhage.study import params as config
from hemorrhage.study.family import Family
from hemorrhage.study.members import Member
from hemorrhage.study.outputs import collect_garbage, invalidate, list_failures
from hemorrhage.study.plan import DATA, PROVENANCE, REPORTS, TEMPLATES, Plan
from hemorrhage.tools.plan import as_text
from tests.conftest import ROOT
from tests.study.test_params import DEFAULT, changed


def study(plan: Plan) -> Family:
    return Family([Member("", "", {}, plan.params)])


def addresses(content: dict[str, Any]) -> dict[str, str]:
    plan = Plan(config.Params.model_validate(content))
    return {**plan.addresses(), "rows": plan.rows, "page": plan.page}


REPORT = {"rows", "page"}


BEFORE = addresses(DEFAULT)


def moved(content: dict[str, Any]) -> set[str]:
    """Outputs that are new or lie elsewhere, and which went."""
    after = addresses(content)
    return {name for name in BEFORE.keys() | after.keys() if BEFORE.get(name) != after.get(name)}


def of(kind: str) -> set[str]:
    return {name for name in BEFORE if name.startswith(f"{kind}/")}


def test_same_params_same_addresses() -> None:
    assert moved(copy.deepcopy(DEFAULT)) == set()


def test_a_variants_setting_moves_that_variant() -> None:
    content = changed("compress/gptq/bits", [8, 6, 4, 3])
    assert moved(content) == {"checkpoints/gptq-2", "evaluations/gptq-2"} | REPORT
    content = changed("compress/llama_pro/added", [0.1])
    gone = {f"{kind}/llama_pro-{share}" for kind in ("checkpoints", "evaluations") for share in (0.1, 0.2)}
    assert moved(content) == gone | REPORT


def test_decoding_follows_its_variants_and_its_settings() -> None:
    assert moved(changed("decode/seed", 1)) == of("decodes") | REPORT
    content = changed("compress/gptq/damp", 0.05)
    content["compress"]["wanda_gptq"]["damp"] = 0.05
    names = [*(f"gptq-{bits}" for bits in DEFAULT["compress"]["gptq"]["bits"]), "wanda_gptq-wanda-0.5-4"]
    swept = {f"{kind}/{name}" for kind in ("checkpoints", "evaluations") for name in names}
    assert moved(content) == swept | {"decodes/gptq-3", "corrections/gptq-3"} | REPORT


def test_corrections_follow_their_variants_and_their_settings() -> None:
    assert moved(changed("mitigate/buckets", 5)) == of("corrections") | REPORT
    assert moved(changed("mitigate/smallest_effect", 0.2)) == REPORT
    assert moved(changed("mitigate/variants", ["gptq-3", "rtn-3"])) == {"corrections/rtn-3"} | REPORT


def test_a_variant_on_another_follows_it() -> None:
    after = moved(changed("compress/wanda/seed", 1))
    assert {name for name in after if name.startswith("checkpoints/")} == {
        *(name for name in of("checkpoints") if name.startswith("checkpoints/wanda-")),
        "checkpoints/wanda_gptq-wanda-0.5-4",
    }
    plan = Plan(config.Params.model_validate(DEFAULT))
    assert plan.variants["wanda_gptq-wanda-0.5-4"].after == ("wanda-0.5", "gptq-4")


def test_a_variant_on_a_transform_that_changes_nothing_is_no_combination() -> None:
    content = changed("compress/smoothing", {"method": "smoothing", "alpha": [0.8]})
    recipe = {"method": "gptq", "on": ["smoothing-0.8"], "bits": 8, "group_size": "channel", "inputs": "int8_token"}
    content["compress"] |= {
        "w8a8": recipe,
        "smoothed_wanda": {"method": "smoothing", "on": "wanda-0.5"},
        "rounded": {"method": "gptq", "bits": 4, "group_size": 64, "on": "smoothed_wanda"},
    }
    variants = Plan(config.Params.model_validate(content)).variants
    assert variants["w8a8-smoothing-0.8"].after == ("smoothing-0.8",)
    # Behind the pruned one it is, as on that itself.
    assert variants["rounded"].after == ("smoothed_wanda", "gptq-4")


def test_gradients_are_made_for_those_that_read_them() -> None:
    assert not Plan(config.Params.model_validate(DEFAULT)).names("gradients")
    sweep = {"method": "gblm", "sparsity": [0.5]}
    plan = Plan(config.Params.model_validate(changed("compress/gblm", sweep)))
    assert list(plan.names("gradients")) == ["loss"]
    assert kinds.gradients_of(plan.design, "gblm-0.5") == ["loss"]


def test_an_evaluation_parameter_moves_evaluations_only() -> None:
    moving = of("references") | of("evaluations") | of("corrections") | REPORT
    assert moved(changed("evaluate/windows", 8)) == moving


def test_a_variant_that_is_ablated_is_evaluated_again() -> None:
    assert moved(changed("evaluate/diagnostics/ablate", ["base", "rtn-4"])) == {"evaluations/rtn-4"} | REPORT


def mirrored(folder: Path) -> dict[str, Any]:
    """The default params with two benchmarks, read from a mirror."""
    files = ("allenai/ai2_arc/ARC-Easy/test", "google-research-datasets/mbpp/full/test")
    for name in (*files, "google-research-datasets/mbpp/full/prompt"):
        file = folder / f"{name}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    content = changed("data", {"source": "mirror", "path": str(folder), "items": 24, "seed": 0})
    content["evaluate"]["harness"]["tasks"] = ["arc_easy"]
    content["evaluate"]["code_tasks"]["tasks"] = ["mbpp", "humaneval"]
    return content


def test_benchmarks_are_prepared_once_and_run_on_every_model(tmp_path: Path) -> None:
    content = mirrored(tmp_path)
    before = addresses(content)
    assert {name for name in before if name.startswith("benchmarks/")} == {
        f"benchmarks/{task}" for task in ("arc_easy", "mbpp", "humaneval")
    }
    models = {"base", *Plan(config.Params.model_validate(content)).variants}
    for kind in ("harness", "code_tasks"):
        assert {name for name in before if name.startswith(f"{kind}/")} == {f"{kind}/{model}" for model in models}
        assert not of(kind), "none is asked for by default"
    (tmp_path / "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet").write_bytes(b"another")
    after = addresses(content)
    ran = {name for name in before if before[name] != after[name]}
    assert ran == {"benchmarks/arc_easy", *REPORT, *(name for name in before if name.startswith("harness/"))}


def test_an_engine_moves_its_own_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert not of("served"), "none is asked for by default"
    asked: dict[str, Any] = {"names": ["transformers"], "variants": ["rtn-4"]}
    content = changed("evaluate/engines", asked)
    served = {"served/transformers.base", "served/transformers.rtn-4"}
    assert moved(content) == served | REPORT
    before = addresses(content)
    newer = replace(ENGINES["transformers"], version="6")
    monkeypatch.setitem(ENGINES, "transformers", newer)
    assert {name for name, key in addresses(content).items() if key != before[name]} == served | REPORT
    other = replace(newer, name="other")
    monkeypatch.setitem(ENGINES, "other", other)
    after = addresses(content)
    assert len(addresses(changed("evaluate/engines", ["transformers"]))) == len(BEFORE) + len(of("evaluations"))
    assert addresses(content) == after, "an engine that is not asked for"


def test_an_engine_is_installed_before_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Engine, "requirements", property(lambda _: ROOT / "requirements.txt"))
    params = config.Params.model_validate(
        changed("evaluate/engines", {"names": ["transformers"], "variants": ["rtn-4"]})
    )
    elsewhere = replace(ENGINES["transformers"], is_built_in=False)
    with monkeypatch.context() as patch:
        patch.setitem(ENGINES, "transformers", elsewhere)
        patch.setattr(Plan, "_check_engines", lambda _: None)
        manifests = Plan(params).manifests("served")
    monkeypatch.setitem(ENGINES, "transformers", elsewhere)
    with pytest.raises(config.ConfigError) as error:
        Plan(params)
    assert str(error.value).startswith("params.yaml: evaluate.engines: transformers is not installed in ")
    assert str(error.value).endswith(": hemorrhage engine install transformers")
    for manifest in manifests:
        Path(manifest).parent.mkdir(parents=True)
        Path(manifest).write_text(json.dumps({"failure": "no luck"}))
    # What exists needs no engine: a fresh clone after `dvc pull`.
    plan = Plan(params)
    assert list_failures(study(plan)) == {"base": "no luck", "rtn-4": "no luck"}
    assert [path.parent.name for path in invalidate(study(plan), ["rtn-4"])] == ["transformers.rtn-4"]


SERVER = {"openai": "http://127.0.0.1:8000/v1", "model": "My.Model", "variant": "rtn-4"}


def test_a_server_moves_by_what_is_asked_of_it_and_by_nothing_of_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_server(**fields: object) -> dict[str, Any]:
        return changed("evaluate/engines", [{**SERVER, **fields}])

    monkeypatch.setenv("MY_KEY", "one")
    first = addresses(with_server())
    assert moved(with_server()) == {"served/my_model.rtn-4"} | REPORT
    for fields in ({"key_env": "MY_KEY"}, {"max_tokens": 5, "concurrency": 1}):
        assert addresses(with_server(**fields))["served/my_model.rtn-4"] == first["served/my_model.rtn-4"]
    for more in ({"openai": "http://127.0.0.1:8001"}, {"model": "my_model"}, {"top": 5}, {"dialect": "echo"}):
        assert addresses(with_server(**more))["served/my_model.rtn-4"] != first["served/my_model.rtn-4"]
    plan = Plan(config.Params.model_validate(with_server(name="mine", key_env="MY_KEY")))
    arguments = kinds.KINDS["served"].options(plan.design, "mine.rtn-4")
    assert (arguments["variant"], "engine" in arguments) == ("rtn-4", False)
    server = Server.model_validate(arguments["server"])
    assert (server.name, server.key_env, server.tag) == ("mine", "MY_KEY", "mine-http")


def test_a_server_has_its_key_before_work_and_is_asked_anew_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    params = config.Params.model_validate(changed("evaluate/engines", [{**SERVER, "key_env": "MY_KEY"}]))
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(config.ConfigError, match=r"evaluate\.engines: the environment variable MY_KEY is empty"):
        Plan(params)
    monkeypatch.setenv("MY_KEY", "one")
    plan = Plan(params)
    for manifest in (*plan.manifests("served"), plan.manifest("checkpoints", "rtn-4")):
        Path(manifest).parent.mkdir(parents=True)
        Path(manifest).write_text("{}")
    assert [path.parent.name for path in invalidate(study(plan), ["my_model"])] == ["my_model.rtn-4"]
    assert Path(plan.manifest("checkpoints", "rtn-4")).is_file()


def test_an_analysis_parameter_moves_the_report_only() -> None:
    assert moved(changed("analyze/resamples", 500)) == REPORT


def test_calibration_moves_only_methods_that_read_statistics() -> None:
    plan = Plan(config.Params.model_validate(DEFAULT))
    free = {name for name in plan.variants if not kinds.needs_calibration(plan.design, name)}
    assert {"rtn-4", "magnitude-0.5", "random_depth-0.3", "llama_pro-0.2"} <= free
    assert not free & {"gptq-4", "wanda-0.5", "sparsegpt-2of4", "shortgpt-0.3"}
    after = moved(changed("calibrate/seed", 7))
    assert {name for name in after if name.startswith("checkpoints/")} == {
        f"checkpoints/{name}" for name in plan.variants if name not in free
    }
    assert of("calibrations") <= after
    assert not after & (of("base") | of("texts") | of("references"))


def test_a_mixed_calibration_reads_every_text_of_it() -> None:
    plan = Plan(config.Params.model_validate(changed("calibrate/corpus", ["prose", "code"])))
    assert list(plan.names("calibrations")) == ["prose-code"]
    assert (
        kinds.tokens_needed(plan.design, "code")["calibration"]
        == DEFAULT["calibrate"]["samples"] // 2 * DEFAULT["calibrate"]["length"]
    )
    alone = Plan(config.Params.model_validate(changed("calibrate/corpus", ["prose"])))
    assert alone.names("calibrations") == Plan(config.Params.model_validate(DEFAULT)).names("calibrations")


def test_a_repetition_has_a_calibration_set_of_its_own_and_moves_nothing_else() -> None:
    gptq = {"method": "gptq", "bits": [4], "group_size": 64, "symmetric": False, "calibration_seed": 1}
    content = changed("compress/gptq_again", gptq)
    plan = Plan(config.Params.model_validate(content))
    assert list(plan.names("calibrations")) == ["prose", "prose.1"]
    assert not (moved(content) & set(BEFORE)) - {"rows", "page"}
    assert "data/calibrations/prose.1/" in plan.inputs("checkpoints", "gptq_again-4")["calibration"][0]
    assert '"calibration_seed": 1' in plan.command("checkpoints", "gptq_again-4")
    # The same set by another way: what the study itself draws with that seed.
    drawn = Plan(config.Params.model_validate(changed("calibrate/seed", 1)))
    assert plan.address("calibrations", "prose.1") == drawn.address("calibrations", "prose")
    assert plan.address("checkpoints", "gptq_again-4") != drawn.address("checkpoints", "gptq-4"), "one is a repetition"


def test_the_epoch_moves_everything() -> None:
    assert moved(changed("cache_version", 2)) == set(BEFORE)


def test_settle_keeps_what_the_plan_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(config.Params.model_validate(DEFAULT))
    monkeypatch.chdir(tmp_path)
    kept = Path(plan.manifest("checkpoints", "rtn-4")).parent
    for folder in (kept, DATA / "checkpoints/rtn-4/aaaaaaaaaaaa", DATA / "checkpoints/old-1/bbbbbbbbbbbb"):
        folder.mkdir(parents=True)
    (DATA / "checkpoints/rtn-4/cccccccccccc.part-host-1").mkdir()
    assert len(collect_garbage(study(plan), ["checkpoints"])) == 3
    assert list((DATA / "checkpoints").glob("*/*")) == [kept]
    assert not (DATA / "checkpoints/old-1").exists()


def test_forget_removes_one_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(config.Params.model_validate(DEFAULT))
    monkeypatch.chdir(tmp_path)
    for variant in ("rtn-4", "rtn-3"):
        Path(plan.manifest("checkpoints", variant)).parent.mkdir(parents=True)
    assert invalidate(study(plan), ["rtn-4"]) == [Path(plan.manifest("checkpoints", "rtn-4")).parent]
    assert Path(plan.manifest("checkpoints", "rtn-3")).parent.is_dir()
    with pytest.raises(config.ConfigError, match="rtn-5 is not a variant"):
        invalidate(study(plan), ["rtn-5"])


def test_too_few_tokens_of_an_earlier_text_stop_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(config.Params.model_validate(DEFAULT))
    manifest = Path(plan.manifest("texts", "prose"))
    monkeypatch.chdir(tmp_path)
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"tokens": {"calibration": 100, "evaluation": 10**9}}))
    with pytest.raises(config.ConfigError, match="corpus prose has 100 calibration tokens"):
        Plan(config.Params.model_validate(DEFAULT))


def prepared(content: dict[str, Any], config_json: dict[str, Any], **manifest: Any) -> None:
    """Put a base where the plan wants it, in the working directory."""
    folder = Path(Plan(config.Params.model_validate(content)).checkpoint("base")).parent
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_json))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_model_of_the_hub_is_checked_once_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = changed("model", {"source": "hub", "id": "a/b", "revision": "0" * 40})
    sizes = {"hidden_size": 576, "num_hidden_layers": 30, "expand": 2, "vocab_size": 49152}
    prepared(content, {"model_type": "mamba", **sizes}, probe=[{"part": "blocks", "answer": "yes", "reason": ""}])
    with pytest.raises(config.ConfigError, match=r"^params\.yaml: compress\.\w+: .*mamba|no attention"):
        Plan(config.Params.model_validate(content))


def test_a_base_that_steps_can_do_nothing_with_stops_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    findings = [{"part": "linear layers", "answer": "no", "reason": "blocks share weights"}]
    prepared(DEFAULT, {}, probe=findings)
    with pytest.raises(config.ConfigError, match=r"^params\.yaml: model: linear layers: blocks share weights$"):
        Plan(config.Params.model_validate(DEFAULT))


def test_the_order_of_corpora_counts() -> None:
    """The diagnostics read the first one."""
    assert moved(changed("evaluate/corpora", ["code", "prose"])) == BEFORE.keys() - {
        name
        for name in BEFORE
        if name.startswith(("base/", "texts/", "tasks/", "calibrations/", "checkpoints/", "decodes/"))
    }


def test_a_template_moves_the_page_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    monkeypatch.setattr("hemorrhage.study.plan.TEMPLATES", tmp_path / "templates")
    assert moved(DEFAULT) == set()
    css = tmp_path / "templates" / "report.css.j2"
    css.write_text(css.read_text() + "/* redder */")
    assert moved(DEFAULT) == {"page"}


def report(plan: Plan, page: str | None) -> None:
    """Write what a run leaves in reports/."""
    REPORTS.mkdir(exist_ok=True)
    for name in (*kinds.ROWS_FILES, *kinds.PAGE_FILES):
        (REPORTS / name).touch()
    (REPORTS / PROVENANCE).write_text(json.dumps({"address": plan.rows, **({"page": page} if page else {})}))


def test_numbers_made_anew_make_the_page_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(config.Params.model_validate(DEFAULT))
    monkeypatch.chdir(tmp_path)
    states = []
    for page in (None, "another", plan.page):
        report(plan, page)
        states.append((plan.rows_are_current(), plan.report_is_current()))
    assert states == [(True, False), (True, False), (True, True)]
    assert f"{'page':24s} current" in as_text(plan)
    (REPORTS / "index.html").unlink()
    assert (plan.rows_are_current(), plan.report_is_current()) == (True, False)
    report(plan, plan.page)
    (REPORTS / "claims.json").unlink()
    assert (plan.rows_are_current(), plan.report_is_current()) == (False, False)
    report(plan, plan.page)
    assert invalidate(study(plan), ["rtn-4"]) == []
    assert (plan.rows_are_current(), plan.report_is_current()) == (True, True)
    checkpoint = Path(plan.manifest("checkpoints", "rtn-4")).parent
    checkpoint.mkdir(parents=True)
    assert invalidate(study(plan), ["rtn-4"]) == [checkpoint]
    assert (plan.rows_are_current(), plan.report_is_current()) == (False, False)


SCREENED: dict[str, Any] = changed("screen", {"windows": 4, "allowance": 2})


def bracket_of(plan: Plan, *added: Addition) -> Path:
    """Write a bracket where a plan looks for it; its folder."""
    folder = Path(plan.manifest(*kinds.BRACKET)).parent
    folder.mkdir(parents=True)
    Bracket(4, 2, (), (), added, (), {}).write(folder)
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_bracket_adds_points_at_the_addresses_that_params_yaml_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = Plan(config.Params.model_validate(SCREENED))
    assert before.is_open
    assert "at most 2 are added" in as_text(before)
    assert "rtn-6" not in before.variants
    bracket_of(before, Addition("rtn-6", "rtn", {"bits": 6}))
    after = Plan(config.Params.model_validate(SCREENED))
    assert not after.is_open
    assert list(after.variants)[:5] == ["rtn-8", "rtn-4", "rtn-3", "rtn-2", "rtn-6"]
    assert (after.rows, after.page) == (before.rows, before.page)
    named = Plan(config.Params.model_validate(changed("compress/rtn/bits", [8, 6, 4, 3, 2])))
    for kind in ("checkpoints", "evaluations"):
        assert after.address(kind, "rtn-6") == named.address(kind, "rtn-6") == before.address(kind, "rtn-6")
        assert after.names(kind).items() >= before.names(kind).items()
    assert "rtn-6" not in after.names("screens")


def test_nothing_that_a_screening_may_ask_for_is_garbage_until_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Plan(config.Params.model_validate(SCREENED))
    made = {name: Path(plan.manifest("checkpoints", name)).parent for name in ("rtn-6", "rtn-5")}
    for folder in made.values():
        folder.mkdir(parents=True)
    assert collect_garbage(study(plan), ["checkpoints"]) == []
    assert "checkpoints/rtn-6" in plan.addresses()
    bracket_of(plan, Addition("rtn-6", "rtn", {"bits": 6}))
    assert collect_garbage(study(Plan(config.Params.model_validate(SCREENED))), ["checkpoints"]) == [made["rtn-5"]]


def test_a_screening_follows_what_it_reads_and_moves_nothing_else() -> None:
    before, after = addresses(SCREENED), addresses(changed("screen", {"windows": 3, "allowance": 2}))
    moved = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert moved == {"screen_references", "screens", "brackets"} | REPORT
    without = addresses(changed("screen", {"windows": 0}))
    assert {name for name in without if without[name] != before[name]} == REPORT


@pytest.mark.parametrize("fresh", [{"windows": 24, "items": 8}, {"windows": 16, "items": 9}])
def test_numbers_follow_how_it_is_confirmed_whatever_will_be(fresh: dict[str, int]) -> None:
    screen = {"windows": 4, "allowance": 2}
    before = Plan(config.Params.model_validate(changed("screen", {**screen, "confirm": {"windows": 16, "items": 8}})))
    after = Plan(config.Params.model_validate(changed("screen", {**screen, "confirm": fresh})))
    assert before.address(*kinds.BRACKET) == after.address(*kinds.BRACKET)
    assert before.rows != after.rows
