"""Stages in order: what preflight finds, what is skipped, what starts over, what is shown."""

import errno
import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from mlflow import MlflowClient
from rich.console import Console

from metaalign.config import PipelineConfig
from metaalign.data.recipes.cases import Case
from metaalign.errors import ConfigError, DataError
from metaalign.pipeline.job import clock, connect, reported
from metaalign.pipeline.preflight import check
from metaalign.pipeline.run import run_pipeline
from metaalign.pipeline.showcase import draw_pair, rates, side_by_side
from metaalign.pipeline.stages import Record, Records, contents, stages_of
from metaalign.preferences import Preference
from metaalign.tracking import open_run

ARCHITECTURE = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}


pytestmark = pytest.mark.usefixtures("ray_cluster")


def config_of(storage: Path, **settings: Any) -> PipelineConfig:
    return PipelineConfig.model_validate({"storage": str(storage), "name": "test", **settings})


def whole(storage: Path, **changed: Any) -> PipelineConfig:
    settings: dict[str, Any] = {
        "prepare": {"recipes": {"examples": 100, "cases": 20}},
        "sft": {"model": {"architecture": ARCHITECTURE}},
        "sft_export": {"run": "sft", "output": "sft_model"},
        "dpo": {"model": {"path": "sft_model"}},
        "export": {"run": "dpo"},
        "evaluate": {},
    }
    return config_of(storage, **{**settings, **changed})


def planned(config: PipelineConfig) -> Records:
    records = Records(config.storage)
    records.plan(stages_of(config))
    return records


def test_a_sound_pipeline_passes_preflight(tmp_path: Path) -> None:
    config = whole(tmp_path)
    check(config, stages_of(config))


def test_preflight_reports_every_problem_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = whole(
            tmp_path,
            prepare={"sources": [{"path": "/nowhere/*.jsonl"}], "held_out_ratio": 0},
            sft={"model": {"architecture": {"model_type": "lama"}}, "workers": {"num_workers": 64}},
            dpo={"model": {"path": "sft_modle"}, "store": "stroe"},
            serve={"port": taken.getsockname()[1]},
        )
        with pytest.raises(ConfigError) as found:
            check(config, stages_of(config))
    text = str(found.value)
    assert "test: 8 problems, nothing was started" in text
    for problem in (
        "prepare: sources: '/nowhere/*.jsonl' matches no file",
        "sft: model.architecture.model_type 'lama' is none of transformers' (did you mean llama",
        "sft: workers.num_workers 64 at workers.cpus_per_worker 1 takes 64 CPUs",
        f"dpo: it reads '{tmp_path}/stroe', which does not exist",
        f"dpo: it reads '{tmp_path}/sft_modle', which does not exist",
        "serve: port",
        "evaluate: prepare holds no examples out for it; set prepare.held_out_ratio above 0",
        "serve: it needs held-out cases",
    ):
        assert problem in text


def test_data_without_recipes_can_be_evaluated_but_not_shown(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    own = {"sources": [{"path": str(rows)}], "recipes": None}
    config = whole(tmp_path, prepare=own)
    check(config, stages_of(config))
    config = whole(tmp_path, prepare=own, serve={})
    with pytest.raises(ConfigError, match=r"1 problem, .*\n  serve: it needs held-out cases"):
        check(config, stages_of(config))


def test_two_stages_that_write_one_folder_are_refused(tmp_path: Path) -> None:
    config = whole(tmp_path, export={"run": "dpo", "output": "sft_model"})
    with pytest.raises(ConfigError, match=r"export: it writes .* as sft_export does"):
        check(config, stages_of(config))


def test_a_change_runs_its_stage_and_what_follows_and_nothing_before(tmp_path: Path) -> None:
    before = planned(whole(tmp_path)).fingerprints
    after = planned(
        whole(
            tmp_path, sft_export={"run": "sft", "output": "other"}, dpo={"model": {"path": "other"}}
        )
    ).fingerprints
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"sft_export", "dpo", "export", "evaluate"}


def test_tracking_and_the_place_of_the_storage_are_no_inputs(tmp_path: Path) -> None:
    here = planned(whole(tmp_path / "a")).fingerprints
    there = planned(whole(tmp_path / "b", tracking={"experiment": "other"})).fingerprints
    assert here == there


def test_serving_is_planned_although_it_tracks_nothing(tmp_path: Path) -> None:
    assert "serve" in planned(whole(tmp_path, serve={})).fingerprints


def test_a_source_counts_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n')
    config = config_of(tmp_path, prepare={"sources": [{"path": str(file)}]})
    first = planned(config).fingerprints
    file.write_text('{"instruction": "a", "output": "c"}\n')
    second = planned(config).fingerprints
    file.write_text('{"instruction": "a", "output": "b"}\n')
    assert first != second
    assert planned(config).fingerprints == first
    file.rename(tmp_path / "other.jsonl")
    config = config_of(tmp_path, prepare={"sources": [{"path": str(tmp_path / "*.jsonl")}]})
    by_glob = planned(config).fingerprints
    (tmp_path / "other.jsonl").rename(file)
    assert planned(config).fingerprints != by_glob, "its name may say whose statements it holds"


def test_a_stage_is_finished_only_with_its_record_fingerprint_and_folder(tmp_path: Path) -> None:
    config = whole(tmp_path)
    records, stage = planned(config), stages_of(config)[0]
    (tmp_path / "store").mkdir()
    done = Record(records.fingerprints["prepare"], "finished", 3.0, "run", contents(stage))
    assert records.finished(stage) is None
    records.save(stage, done)
    assert records.finished(stage) == done
    (tmp_path / "store").rename(tmp_path / "away")
    assert records.finished(stage) is None, "its folder is missing"
    (tmp_path / "away").rename(tmp_path / "store")
    (tmp_path / "store" / "manifest.json").write_text("{}")
    assert records.finished(stage) is None, "another job wrote to its folder"
    (tmp_path / "store" / "manifest.json").unlink()
    assert records.finished(stage) == done
    records.save(stage, Record(done.fingerprint, "started"))
    assert records.finished(stage) is None, "it was cut short"
    records.save(stage, Record("other", "finished"))
    assert records.finished(stage) is None, "its settings changed"


def test_what_other_settings_wrote_is_set_aside_and_what_was_cut_short_stays(
    tmp_path: Path,
) -> None:
    config = whole(tmp_path)
    records, stage = planned(config), stages_of(config)[1]
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "checkpoint").write_text("old")
    assert records.start(stage) == [], "a folder without a record is the job's to judge"
    assert records.start(stage) == [], "the same settings go on where they stopped"
    records.save(stage, Record("other settings", "started"))
    assert records.start(stage) == [tmp_path / "sft.previous"]
    assert (tmp_path / "sft.previous" / "checkpoint").read_text() == "old"
    assert not (tmp_path / "sft").exists()
    (tmp_path / "sft").mkdir()
    records.save(stage, Record("other settings", "started"))
    assert records.start(stage) == [tmp_path / "sft.previous-2"], "nothing is deleted"


def test_a_finished_stage_is_not_run_again_and_its_run_is_a_child(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, prepare={"recipes": {"examples": 100, "cases": 20}})
    reports = []
    for _ in range(2):
        with open_run(config.tracking, storage=config.storage, name="test") as run:
            run_pipeline(config, run)
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    first, second = capsys.readouterr().out.split("test: 1 stages")[1:]
    assert "prepare: done in" in first
    assert "prepare: unchanged, skipped" in second
    assert reports[0]["seconds"] == reports[1]["seconds"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    stage = client.get_run(client.get_run(run.id).data.tags["stage.prepare"])
    assert stage.info.run_name == "prepare"
    assert stage.data.params["recipes.examples"] == "100"
    assert stage.data.tags["mlflow.parentRunId"] != run.id, "the first pipeline ran it"
    assert (tmp_path / "store" / "manifest.json").is_file()


def test_the_question_is_drawn_by_seed_from_whole_pairs(tmp_path: Path) -> None:
    lines = [flip(pair, side).to_json() for pair in "abcdefgh" for side in (0, 1)]
    (tmp_path / "cases.jsonl").write_text("\n".join([*lines, flip("i", 0).to_json()]))
    pairs = {draw_pair(tmp_path, seed)[0].pair for seed in range(40)}
    assert draw_pair(tmp_path, 3) == draw_pair(tmp_path, 3)
    assert len(pairs) > 4
    assert "i" not in pairs
    first, second = draw_pair(tmp_path, 0)
    assert first.query == second.query
    assert first.user_info != second.user_info


def flip(pair: str, side: int) -> Case:
    return Case(
        id=f"{pair}-{side}",
        metric="flip",
        system_info="",
        user_info=("Please write in capitals.", "No capitals, please.")[side],
        query="What is the capital of Chile?",
        question="capital-of-chile",
        wants=(Preference(("capitals", "lowercase")[side], ""),),
        family="capitals",
        pair=pair,
    )


def shown(renderable: object) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_answers_stand_side_by_side_under_what_was_told() -> None:
    text = shown(side_by_side((flip("a", 0), flip("a", 1)), ["SANTIAGO [x]", "SANTIAGO"]))
    told = next(line for line in text.splitlines() if "write in capitals" in line)
    answered = next(line for line in text.splitlines() if "SANTIAGO [x]" in line)
    assert told.index("No capitals") > told.index("write in capitals")
    assert answered.index("SANTIAGO [x]") < answered.rindex("SANTIAGO")
    assert "What is the capital of Chile?" in text


def test_the_closing_table_holds_every_model_and_count() -> None:
    report = {"flip": {"before": 0.0, "sft": 0.5, "after": 0.9214, "count": 321}}
    row = next(line for line in shown(rates(report)).splitlines() if "flip" in line)
    assert [cell.strip() for cell in row.split("│")][2:-1] == ["0.000", "0.500", "0.921", "321"]


def test_a_failure_on_purpose_is_one_line_and_any_other_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, reported():
        raise DataError("rows.jsonl: no such file")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "DataError: rows.jsonl: no such file\n"
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reported():
        raise OSError(errno.ENOSPC, "No space left on device", "/s/store/tokens")
    assert "StorageError: no space left to write /s/store/tokens" in capsys.readouterr().err
    with pytest.raises(PermissionError), reported():
        raise PermissionError(errno.EACCES, "no")


def test_an_error_of_ours_in_a_worker_of_ray_data_is_one_line_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(batch: dict[str, Any]) -> dict[str, Any]:
        raise DataError(f"row {batch['item'][0]} is bad")

    connect()
    with pytest.raises(SystemExit) as ended, reported():
        ray.data.from_items([7]).map_batches(fail).take_all()
    assert ended.value.code == 1
    assert "DataError: row 7 is bad" in capsys.readouterr().err.splitlines()


def test_clock() -> None:
    assert [clock(0.9), clock(61), clock(3600)] == ["0:00", "1:01", "60:00"]


@pytest.mark.slow
def test_the_whole_way_leaves_a_report_and_then_only_serves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = {"length": {"epochs": None, "max_steps": 4}, "workers": {"num_workers": 2}}
    small["batch"] = {"global_batch_size": 8, "budget": 256, "rows": 2}
    architecture = {**ARCHITECTURE, "hidden_size": 16, "intermediate_size": 32}
    config = whole(
        tmp_path,
        sft={"model": {"architecture": architecture}, **small},
        dpo={"model": {"path": "sft_model"}, **small},
        evaluate={"generation": {"max_tokens": 4}},
        serve={"port": port, "max_tokens": 4},
    )
    for _ in range(2):
        with open_run(config.tracking, storage=config.storage, name="test") as run:
            run_pipeline(config, run)
    report = json.loads((tmp_path / "report.json").read_text())
    for metric in ("following", "flip", "conflict", "hidden", "swapped"):
        assert set(report[metric]) == {"before", "sft", "after", "count"}
    stages = ["prepare", "sft", "sft_export", "dpo", "export", "evaluate", "serve"]
    assert list(report["seconds"]) == [*stages, "total"]
    assert report["best_constant"] >= 0
    assert "family" in report["worst_family"]
    first, second = capfd.readouterr().out.split("test: 7 stages")[1:]
    assert first.count("obeyed, ") == 2, "a verdict under each answer"
    assert "flip: obeys both of two opposites" in first
    assert [name for name in stages if f"{name}: unchanged, skipped" in second] == stages[:-1]
    assert "serve: done in" in second
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    children = client.search_runs(
        [client.get_run(run.id).info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{run.id}'",
    )
    assert [child.info.run_name for child in children] == ["serve"]
