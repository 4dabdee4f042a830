"""What a job finds out before its workers start, beside what `test_trainer` sees refused."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from metaalign.config import DPOConfig
from metaalign.store.token_store import TokenStore
from metaalign.train.launch.driver import prepare_task
from tests.tiny_task import settings_of


@pytest.mark.parametrize(("size", "warned"), [(1, True), (2, False)])
def test_a_group_larger_than_a_step_is_told(
    size: int,
    warned: bool,
    tmp_path: Path,
    make_store: Callable[..., TokenStore],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_store(tmp_path / "store")  # two neighbours share a conversation
    batch = {"global_batch_size": size, "budget": 192, "rows": 2, "group_by": "conversation"}
    config = DPOConfig.model_validate(settings_of(tmp_path, output="grouped", batch=batch))
    with caplog.at_level(logging.WARNING, logger="metaalign"):
        prepare_task(config, "cpu")
    told = [line for line in caplog.messages if "the largest group has 2 examples" in line]
    assert len(told) == warned
