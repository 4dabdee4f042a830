"""The table of losses: its functions exist and take what their rows say; the documentation shows
the table."""

import inspect
from pathlib import Path

import pytest

from metaalign.config.dpo import DPOConfig
from metaalign.config.loss_table import BEGIN, loss_table, with_table
from metaalign.config.preference_losses import (
    OWN_SETTINGS,
    PREFERENCE_LOSSES,
    SHARED_SETTINGS,
    PreferenceLoss,
    PreferenceLossConfig,
)
from metaalign.train.losses import formulas

ROOT = Path(__file__).resolve().parents[1]
GATHERED = {
    "pairs": {"chosen", "rejected"},
    "ranking": {"chosen", "rejected", "slot", "num_slots"},
    "single": {"ratio", "desirable", "reference_point"},
}
"""What a loss's function takes of a micro-batch, by its kind of data."""


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES.values(), ids=lambda loss: loss.name)
def test_a_row_names_a_function_that_takes_exactly_its_settings(loss: PreferenceLoss) -> None:
    parameters = set(inspect.signature(getattr(formulas, loss.function)).parameters)
    margin = {"margin"} if loss.has_margin else set()
    assert parameters == {*GATHERED[loss.data], "beta", *loss.settings, *margin}


def test_every_setting_of_a_row_is_a_setting_of_the_config() -> None:
    fields = set(PreferenceLossConfig.model_fields)
    assert {*OWN_SETTINGS, *SHARED_SETTINGS} == fields - {"name", "references", "reference_clip"}
    for loss in PREFERENCE_LOSSES.values():
        assert set(loss.defaults) <= set(SHARED_SETTINGS)


def test_help_says_who_reads_a_setting_and_the_defaults() -> None:
    described = {
        name: str(field.description) for name, field in PreferenceLossConfig.model_fields.items()
    }
    assert all(f"{name}, " in described["name"] for name in [*PREFERENCE_LOSSES][:-1])
    assert described["label_smoothing"].endswith("Read by robust alone. Default: robust 0.1.")
    assert described["beta"].endswith("Other defaults: simpo 2, sppo_hard 0.001.")


def test_an_unknown_loss_is_refused_with_the_names() -> None:
    settings = {"storage": "/s", "model": {"path": "a"}, "loss": {"name": "dpo"}}
    with pytest.raises(ValueError, match=r"should be 'sigmoid', 'ipo', .* or 'kto'"):
        DPOConfig.model_validate(settings)


def test_the_documentation_shows_the_table() -> None:
    pages = [page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    (page,) = (page for page in pages if BEGIN in page)
    assert page == with_table(page), "python -m metaalign.config.loss_table PAGE writes it"
    assert len(loss_table().splitlines()) == 2 + len(PREFERENCE_LOSSES)
