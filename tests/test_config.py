"""Every setting is checked, every problem told at once, every shipped file loads."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from metaalign.config import (
    DPOConfig,
    EvaluateConfig,
    ExportConfig,
    PipelineConfig,
    PrepareConfig,
    ServeConfig,
    SFTConfig,
    load_config,
    parse_arguments,
    resolve,
)
from metaalign.config.preference_losses import PREFERENCE_LOSSES, PreferenceLossConfig
from metaalign.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "ray_jobs" / "configs"
JOBS: dict[str, type[BaseModel]] = {
    "prepare": PrepareConfig,
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "export": ExportConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
    "pipeline": PipelineConfig,
}


def write(folder: Path, text: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(text)
    return file


def job_of(file: Path) -> str:
    """The job that a shipped file is for: the one that its own head runs it with."""
    command = rf"ray_jobs\.(\w+)\s+(?:\\\s*#\s*)?ray_jobs/configs/{file.name}"
    found = re.search(command, file.read_text())
    return found.group(1) if found else "pipeline"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_config_loads(file: Path) -> None:
    config = load_config(JOBS[job_of(file)], file, ["storage=/abs"])
    assert config.storage == "/abs"  # pyright: ignore[reportAttributeAccessIssue]


def test_there_is_a_shipped_config_for_every_job() -> None:
    assert {job_of(file) for file in CONFIGS.glob("*.yaml")} == set(JOBS)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "storage: runs\nmodel: {path: a}\noptimizer: {lr: 2e-5}\nlength: {max_steps: lots}\n",
    )
    with pytest.raises(ConfigError) as error:
        load_config(SFTConfig, file)
    lines = str(error.value).splitlines()
    assert lines[0] == "job.yaml: 3 problems"
    assert lines[1].startswith("  storage: must be an absolute path or a file:// URI")
    assert lines[2] == (
        "  length.max_steps: should be a valid integer, unable to parse string as an integer, "
        "got 'lots'"
    )
    assert lines[3].startswith("  optimizer.lr: unknown setting, got '2e-5'")


def test_a_mistyped_key_gets_the_nearest_one(tmp_path: Path) -> None:
    file = write(tmp_path, "storage: /s\nmodel: {path: a}\noptimizer: {learning_rat: 1}\n")
    with pytest.raises(ConfigError, match=r"did you mean optimizer\.learning_rate\?"):
        load_config(SFTConfig, file)


def test_a_missing_key_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"storage: missing; give it in the file or as storage="):
        load_config(ExportConfig, write(tmp_path, "run: dpo\n"))


def test_an_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    file = write(tmp_path, "storage: /s\nmodel: {path: a}\n")
    config = load_config(SFTConfig, file, ["optimizer.learning_rate=2e-5"])
    assert config.optimizer.learning_rate == 2e-5


def test_overrides_win_reach_lists_and_make_sections(tmp_path: Path) -> None:
    file = write(tmp_path, "storage: /s\nsources: [{path: /a}, {path: /b}]\nseed: 1\n")
    overrides = ["sources.1.path=/c", "tokenizer.vocabulary_size=300", "seed=2", "storage=/t/"]
    config = load_config(PrepareConfig, file, overrides)
    assert [source.path for source in config.sources] == ["/a", "/c"]
    assert (config.tokenizer.vocabulary_size, config.seed, config.storage) == (300, 2, "/t")


def test_an_override_may_be_prose(tmp_path: Path) -> None:
    file = write(tmp_path, "storage: /s\nsources: [{path: /a}]\n")
    for text in ("Rule: answer in JSON: only", "Be kind: always", "@me, please", "*"):
        config = load_config(PrepareConfig, file, [f"sources.0.user_info={text}"])
        assert config.sources[0].user_info == text
    given = load_config(PrepareConfig, file, ["tokenizer={vocabulary_size: 300}"])
    assert given.tokenizer.vocabulary_size == 300


@pytest.mark.parametrize("output", [".", "..", ".stages", "a/b", ""])
def test_an_output_is_one_visible_folder_of_the_storage(tmp_path: Path, output: str) -> None:
    file = write(tmp_path, "storage: /s\n")
    with pytest.raises(ConfigError, match="output"):
        load_config(ExportConfig, file, [f"output='{output}'"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override 'seed': expected section.key=value"),
        ("=3", "override '=3': expected section.key=value"),
        ("seed.low=1", "override 'seed.low=1': 'seed' is not a section"),
        ("sources.3=/x", "override 'sources.3=/x': '3' is no item of the list"),
        ("sources.7.path=/x", "override 'sources.7.path=/x': '7' is not a section"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    file = write(tmp_path, "storage: /s\nsources: [{path: /a}]\nseed: 1\n")
    with pytest.raises(ConfigError) as error:
        load_config(PrepareConfig, file, [override])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- a\n", r"expected settings as `key: value`, got \['a'\]"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PrepareConfig, write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: the config file cannot be read"):
        load_config(PrepareConfig, tmp_path / "none.yaml")


@pytest.mark.parametrize(("storage", "meant"), [("/a/b/", "/a/b"), ("file:///a", "/a"), ("/", "/")])
def test_a_storage_is_an_absolute_path(storage: str, meant: str) -> None:
    assert ExportConfig(storage=storage).storage == meant


@pytest.mark.parametrize("storage", ["runs/demo", "s3://bucket/x", "file://runs"])
def test_another_storage_is_refused(storage: str) -> None:
    with pytest.raises(ValueError, match=r"absolute path"):
        ExportConfig(storage=storage)


@pytest.mark.parametrize("key", ["KEY:secret", "KEY:sec/ret", ":secret"])
def test_a_key_in_an_address_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    config = tmp_path / "sft.yaml"
    config.write_text(
        f"storage: /s\nmodel: {{path: a}}\ncheckpoint: {{storage: 's3://{key}@b/c'}}\n"
    )
    with pytest.raises(
        ConfigError, match=r"checkpoint.storage: contains a key.*'s3://...@b/c'"
    ) as no:
        load_config(SFTConfig, config)
    assert "ret" not in str(no.value).replace("SECRET", "")


def test_settings_that_disagree_are_refused_by_the_section_that_holds_both() -> None:
    origin = {"path": "a", "architecture": {"model_type": "llama"}}
    with pytest.raises(ValueError, match="give exactly one of path and architecture"):
        SFTConfig.model_validate({"storage": "/s", "model": origin})
    with pytest.raises(ValueError, match="without either the run never ends"):
        SFTConfig.model_validate(
            {"storage": "/s", "model": {"path": "a"}, "length": {"epochs": None}}
        )
    with pytest.raises(ValueError, match="there is nothing to prepare"):
        PrepareConfig(storage="/s")
    with pytest.raises(ValueError, match="give at least one stage"):
        PipelineConfig(storage="/s")


@pytest.mark.parametrize("job", [SFTConfig, DPOConfig])
def test_workers_that_come_and_go_need_checkpoints_to_go_on_from(job: type[BaseModel]) -> None:
    settings = {"storage": "/s", "model": {"path": "a"}, "workers": {"num_workers": [1, 4]}}
    job.model_validate(settings)
    settings["checkpoint"] = {"every_steps": None}
    with pytest.raises(ValueError, match=r"checkpoint\.every_steps is None with .* \[1, 4\]"):
        job.model_validate(settings)
    job.model_validate({**settings, "workers": {"num_workers": 4}})


def test_a_pipeline_hands_storage_and_tracking_down_unless_a_stage_has_its_own() -> None:
    config = PipelineConfig.model_validate(
        {
            "storage": "/s",
            "tracking": {"experiment": "mine"},
            "export": {"tracking": {"registered_model": "m"}},
            "evaluate": {"storage": "/t"},
            "serve": {},
        }
    )
    assert config.export is not None
    assert config.evaluate is not None
    assert config.serve is not None
    assert (config.export.storage, config.export.tracking.experiment) == ("/s", "mine")
    assert config.export.tracking.registered_model == "m"
    assert (config.evaluate.storage, config.serve.storage) == ("/t", "/s")
    assert config.sft is None


def test_a_config_survives_the_way_to_a_worker() -> None:
    config = SFTConfig.model_validate({"storage": "/s", "model": {"path": "a"}})
    assert SFTConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_relative_name_means_the_storage() -> None:
    assert resolve("/s", "store") == Path("/s/store")
    assert resolve("/s", "/t/store") == Path("/t/store")


def test_the_command_line_prints_the_problem_and_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(ExportConfig, [str(write(tmp_path, "rum: dpo\n")), "storage=/s"])
    assert end.value.code == 2
    assert "rum: unknown setting, got 'dpo' (did you mean run?)" in capsys.readouterr().err


@pytest.mark.parametrize("job", JOBS)
def test_help_lists_every_setting_with_its_sentence(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(JOBS[job], ["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "storage (required)\n      Root of all outputs" in shown
    assert not re.search(r"\)\n      \n", shown)  # a setting without its sentence


def test_each_loss_has_its_own_defaults_and_they_survive_the_way_to_a_worker() -> None:
    beta = {"simpo": 2.0, "sppo_hard": 0.001}
    for name in PREFERENCE_LOSSES:
        loss = PreferenceLossConfig(name=name)
        assert loss.beta == beta.get(name, 0.1)
        assert loss.sft_weight == (1.0 if name == "orpo" else 0.0)
        assert (loss.label_smoothing, loss.target_margin, loss.desirable_weight) == (
            0.1 if name == "robust" else None,
            0.5 if name == "simpo" else None,
            1.0 if name == "kto" else None,
        )
        assert PreferenceLossConfig.model_validate(loss.model_dump(mode="json")) == loss
    assert PreferenceLossConfig(references=("other",)).reference_clip == 0.1
    assert PreferenceLossConfig(name="simpo", beta=3.0).beta == 3.0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"label_smoothing": 0.0}, "label_smoothing is read by robust alone, .* 'sigmoid'"),
        ({"name": "ipo", "target_margin": 1.0}, "target_margin is read by simpo alone, .* 'ipo'"),
        ({"name": "orpo", "desirable_weight": 1.0}, "desirable_weight is read by kto alone"),
        ({"name": "simpo", "references": ["other"]}, "references is read by .* 'simpo'"),
        ({"name": "kto", "references": ["other"]}, "references is read by .* 'kto'"),
        ({"reference_clip": 0.2}, "reference_clip is read with references alone"),
        ({"name": "dpo"}, "should be 'sigmoid', 'ipo'"),
    ],
)
def test_a_setting_that_the_loss_would_not_read_is_refused(
    tmp_path: Path, settings: dict[str, object], problem: str
) -> None:
    file = write(tmp_path, f"storage: /s\nmodel: {{path: a}}\nloss: {settings}\n")
    with pytest.raises(ConfigError, match=problem):
        load_config(DPOConfig, file)


def test_another_setting_of_the_optimizer_leaves_dpo_its_small_learning_rate(
    tmp_path: Path,
) -> None:
    """SFT's default, 20 times as large, ruins a model within a few steps of DPO."""
    file = write(tmp_path, "storage: /s\nmodel: {path: a}\noptimizer: {weight_decay: 0.1}\n")
    assert load_config(DPOConfig, file).optimizer.learning_rate == 5e-7
    assert load_config(SFTConfig, file).optimizer.learning_rate == 1e-5
