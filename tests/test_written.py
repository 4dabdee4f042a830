"""Text stays as it was written where a setting takes text; a number elsewhere."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaalign.config import (
    DPOConfig,
    EvaluateConfig,
    ExportConfig,
    PrepareConfig,
    SFTConfig,
    load_config,
)
from metaalign.config.written import read_override, read_yaml, settle
from metaalign.errors import ConfigError

SFT = "storage: /s\nmodel: {path: a}\n"
LOOK_LIKE_SOMETHING_ELSE = (
    "2024", "007", "1e5", "1.10", "1_000", "0x1f", "12:30", "true", "no", "2024-01-31",
    "2024-13-45", ".5",
)  # fmt: skip


def write(folder: Path, text: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("text", LOOK_LIKE_SOMETHING_ELSE)
def test_text_stays_as_it_was_written(tmp_path: Path, text: str) -> None:
    config = load_config(SFTConfig, write(tmp_path, SFT), [f"store={text}"])
    assert config.store == text
    config = load_config(SFTConfig, write(tmp_path, f"{SFT}store: {text}\n"))
    assert config.store == text


def test_text_inside_lists_and_mappings_stays_too(tmp_path: Path) -> None:
    text = (
        "storage: /s\n"
        "sources: [{dataset: {name: a, revision: 1234567}, user_info: yes}]\n"
        "recipes: {negatives: {teacher: 1}}\n"
        "teachers: {1: {base_url: 'http://a', model: 4.10}}\n"
        "held_out_families: [1.10, b]\n"
    )
    config = load_config(PrepareConfig, write(tmp_path, text), ["teachers.1.version=2024-01-31"])
    source, (teacher,) = config.sources[0], config.teachers.values()
    assert source.dataset is not None
    assert (source.dataset.revision, source.user_info) == ("1234567", "yes")
    assert (list(config.teachers), teacher.model, teacher.version) == (["1"], "4.10", "2024-01-31")
    assert config.held_out_families == ("1.10", "b")
    evaluate = load_config(EvaluateConfig, write(tmp_path, "storage: /s\nmodels: {after: 007}\n"))
    assert evaluate.models == {"after": "007"}


def test_numbers_and_truth_values_are_what_they_were(tmp_path: Path) -> None:
    text = f"{SFT}seed: 0x1f\nlength: {{epochs: 2}}\n"
    overrides = ["model.activation_checkpointing=on", "workers.num_workers=[1, 2]", "batch.rows=3"]
    config = load_config(SFTConfig, write(tmp_path, text), overrides)
    assert (config.seed, config.length.epochs, config.batch.rows) == (31, 2.0, 3)
    assert (config.model.activation_checkpointing, config.workers.num_workers) == (True, (1, 2))
    teacher = "{base_url: 'http://a', model: m, extra: {seed: 7, top_k: 5, strict: yes}}"
    source = "{path: /a, responses: {teacher: t}}"
    text = f"storage: /s\nsources: [{source}]\nteachers: {{t: {teacher}}}\n"
    config = load_config(PrepareConfig, write(tmp_path, text), ["teachers.t.extra.stop=1.50"])
    extra = config.teachers["t"].extra
    assert extra == {"seed": 7, "top_k": 5, "strict": True, "stop": 1.5}
    assert [type(value) for value in extra.values()] == [int, int, bool, float]


def test_a_setting_of_a_number_or_a_name_takes_either(tmp_path: Path) -> None:
    file = write(tmp_path, "storage: /s\n")
    assert load_config(ExportConfig, file, ["checkpoint=12"]).checkpoint == 12
    assert load_config(ExportConfig, file, ["checkpoint=best"]).checkpoint == "best"
    assert load_config(ExportConfig, file, ["checkpoint=null"]).checkpoint is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("- be brief", "- be brief"),
        ("# of words: 10", "# of words: 10"),
        ("[draft] be kind", "[draft] be kind"),
        ("be kind # always", "be kind # always"),
        ("'be kind'", "be kind"),
        ('"be\\nkind"', "be\nkind"),
        ("~", None),
    ],
)
def test_prose_on_the_command_line_is_no_yaml(tmp_path: Path, text: str, meant: str | None) -> None:
    file = write(tmp_path, "storage: /s\nsources: [{path: /a}]\n")
    config = load_config(PrepareConfig, file, [f"sources.0.user_info={text}"])
    assert config.sources[0].user_info == meant


def test_an_override_inside_an_overridden_section_reaches_it(tmp_path: Path) -> None:
    overrides = ["model.lora={rank: 4}", "model.lora.alpha=8", "loss={beta: 0.2}", "loss.name=ipo"]
    config = load_config(DPOConfig, write(tmp_path, SFT), overrides)
    assert config.model.lora is not None
    assert (config.model.lora.rank, config.model.lora.alpha) == (4, 8)
    assert (config.loss.beta, config.loss.name) == (0.2, "ipo")


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the key 'seed' stands twice\s.*job\.yaml.*line 4"):
        load_config(SFTConfig, write(tmp_path, f"{SFT}seed: 1\nseed: 2\n"))
    merged = "x: &x {epochs: 2}\nlength: {<<: *x, epochs: 3}\n"
    assert settle(read_yaml(merged), Any) == {"x": {"epochs": 2}, "length": {"epochs": 3}}


def test_without_a_type_a_value_is_what_yaml_makes_of_it() -> None:
    text = "{a: 1, b: 1.10, c: [yes, 2024-01-31, x]}"
    plain = yaml.safe_load(text)
    assert settle(read_yaml(text), Any) == plain
    assert settle(read_override(text), dict[str, Any]) == plain
    assert plain["c"][1] == datetime.date(2024, 1, 31)
