"""A setting that another one keeps from having an effect is refused, and so is a number that no run
could use."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from metaalign.config import DPOConfig, ExportConfig, PipelineConfig, PrepareConfig, SFTConfig

SFT: dict[str, Any] = {"storage": "/s", "model": {"path": "a"}}
TEACHER = {"base_url": "http://a", "model": "m"}


def of(job: type[BaseModel], **settings: Any) -> None:
    head = {"storage": "/s"} if job in (ExportConfig, PipelineConfig, PrepareConfig) else SFT
    job.model_validate({**head, **settings})


def source(**settings: Any) -> dict[str, Any]:
    return {"sources": [{"path": "/a", **settings}]}


def asked(**ask: Any) -> dict[str, Any]:
    return {**source(responses={"teacher": "t", **ask}), "teachers": {"t": TEACHER}}


IGNORED = [
    (SFTConfig, {"optimizer": {"schedule": "constant", "final_ratio": 0.1}},
     {"optimizer": {"schedule": "linear", "final_ratio": 0.1}}, "final_ratio 0.1 has no effect"),
    (DPOConfig, {"optimizer": {"schedule": "constant", "final_ratio": 0.1}},
     {"optimizer": {"schedule": "constant"}}, "final_ratio 0.1 has no effect"),
    (SFTConfig, {"optimizer": {"name": "sgd", "betas": [0.9, 0.99], "epsilon": 1e-6}},
     {"optimizer": {"name": "adamw", "betas": [0.9, 0.99], "epsilon": 1e-6}},
     "betas and epsilon have no effect with name 'sgd'"),
    (SFTConfig, {"batch": {"group_by": "example", "max_group_ratio": 4}},
     {"batch": {"group_by": "meta_prompt", "max_group_ratio": 4}},
     "max_group_ratio has no effect with group_by 'example'"),
    (SFTConfig, {"zero": {"stage": 2, "persistence_threshold": 0}},
     {"zero": {"stage": 3, "persistence_threshold": 0}},
     "persistence_threshold has no effect at stage 2"),
    (ExportConfig, {"tracking": {"alias": "best"}},
     {"tracking": {"alias": "best", "registered_model": "m"}}, "alias 'best' has no effect"),
    (SFTConfig, {"tracking": {"registered_model": "m"}}, {"tracking": {"experiment": "e"}},
     "Extra inputs are not permitted"),
    (PipelineConfig, {"tracking": {"registered_model": "m"}, "serve": {}},
     {"tracking": {"registered_model": "m"}, "serve": {}, "export": {}},
     "registered_model 'm' has no effect without a stage that exports"),
    (PipelineConfig, {"seed": 1, "export": {}}, {"seed": 1, "serve": {}},
     "seed has no effect without the stage serve"),
    (PrepareConfig, {**source(), "tokenizer": {"path": "t", "vocabulary_size": 300}},
     {**source(), "tokenizer": {"vocabulary_size": 300}}, "vocabulary_size has no effect"),
    (PrepareConfig, source(correction={"wire": "imhi"}),
     source(correction={"wire": "imhi"}, recipe="equal"), "correction has no effect"),
    (PrepareConfig, source(correction={"warm_up_ratio": 0.5}, recipe="equal"),
     source(correction={"warm_up_ratio": 0.5}, recipe="warm_up"), "warm_up_ratio has no effect"),
    (PrepareConfig, source(system_info="Be kind.", recipe="helpful"),
     source(system_info="Be kind."), "system_info would be replaced by recipe 'helpful'"),
    (PrepareConfig, source(user_info="I am Ana.", recipe="priority", format="alpaca"),
     source(user_info="I am Ana.", recipe="priority"), "user_info would be replaced"),
    (PrepareConfig, {"recipes": {}, "near_duplicates": 0.8, "held_out_ratio": 0.2},
     {**source(), "near_duplicates": 0.8, "held_out_ratio": 0.2},
     "near_duplicates has no effect without sources; held_out_ratio has no effect without sources"),
    (PrepareConfig, {**source(), "held_out_families": ["greeting"]},
     {**source(recipe="priority"), "held_out_families": ["greeting"]},
     "held_out_families has no effect"),
    (PrepareConfig, {**source(format="alpaca"), "oppose_personas": False},
     {**source(format="personas"), "oppose_personas": False}, "oppose_personas has no effect"),
    (PrepareConfig, {**source(), "teachers": {"t": TEACHER}}, asked(),
     "no source or recipe uses t"),
    (PrepareConfig, asked(temperature=0, top_p=0.9), asked(temperature=0.1, top_p=0.9),
     "top_p has no effect at temperature 0"),
]  # fmt: skip
"""Job, settings of which one does nothing, settings in which it does something, the problem."""


@pytest.mark.parametrize(("job", "ignored", "effective", "problem"), IGNORED)
def test_a_setting_without_an_effect_is_refused(
    job: type[BaseModel], ignored: dict[str, Any], effective: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        of(job, **ignored)
    of(job, **effective)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"betas": [0.9, 1.0]}},
        {"optimizer": {"betas": [-0.1, 0.9]}},
        {"optimizer": {"learning_rate": float("inf")}},
        {"length": {"epochs": float("inf")}},
        {"length": {"epochs": float("nan")}},
    ],
)
def test_a_number_that_no_run_could_use_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="1 validation error"):
        of(SFTConfig, **settings)


def test_a_pipeline_registers_what_it_exports_alone() -> None:
    stages = {"prepare": source(), "sft": {"model": {"path": "a"}}, "sft_export": {}, "export": {}}
    config = PipelineConfig.model_validate(
        {
            "storage": "/s",
            "tracking": {"experiment": "e", "registered_model": "m", "alias": "best"},
            **stages,
            "export": {"tracking": {"alias": "champion"}},
        }
    )
    assert config.sft is not None
    assert config.export is not None
    assert config.sft_export is not None
    assert config.sft.tracking.model_dump() == {"uri": None, "experiment": "e"}
    assert config.sft_export.tracking.alias == "best"
    assert config.export.tracking.model_dump() == {
        "uri": None, "experiment": "e", "registered_model": "m", "alias": "champion",
    }  # fmt: skip
