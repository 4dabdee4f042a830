"""MetaAligner's corrector by its shipped configs, in small: three sets, three stages."""

from pathlib import Path
from typing import Any

import pytest

from metaalign.config import ExportConfig, PrepareConfig, SFTConfig, load_config
from metaalign.data.prepare import prepare_store
from metaalign.train.export import run_export
from metaalign.train.launch.on_ray import run_sft

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

CONFIGS = Path(__file__).resolve().parents[1] / "ray_jobs" / "configs"
FIRST = "corrector_contrastive"
"""The store whose tokenizer the others are encoded with."""


def _load(model: Any, name: str, storage: Path, *overrides: str) -> Any:
    return load_config(model, CONFIGS / f"{name}.yaml", [f"storage={storage}", *overrides])


def test_a_corrector_is_trained_in_three_stages(tmp_path: Path, shared_data: Path) -> None:
    """Each stage starts from the one before; the first by 1 nat a token, the others by 0.05."""
    source = f"sources.0.path={shared_data}/fine_grained/dev_feedback.json"
    prepare_store(_load(PrepareConfig, "corrector_prepare", tmp_path, source))
    for name in ("equal", "warm_up"):
        own = (f"sources.0.recipe={name}", f"output=corrector_{name}")
        tokenizer = f"tokenizer={{path: {FIRST}/tokenizer}}"
        prepare_store(_load(PrepareConfig, "corrector_prepare", tmp_path, source, *own, tokenizer))
    small = ("length.epochs=null", "length.max_steps=8", "batch.global_batch_size=16")
    small += ("held_out.max_examples=12",)
    start: tuple[str, ...] = ()
    for stage, store in enumerate(("corrector_warm_up", "corrector_equal", FIRST)):
        own = (f"store={store}", f"output=stage_{stage}", *small, *start)
        result = run_sft(_load(SFTConfig, "corrector_sft", tmp_path, *own))
        before, after = result["held_out"]["before"]["loss"], result["held_out"]["after"]["loss"]
        assert after < before - (0.05 if stage else 1.0), (store, before, after)
        export = ExportConfig(storage=str(tmp_path), run=f"stage_{stage}", output=f"model_{stage}")
        run_export(export)
        start = ("model.architecture=null", f"model.path=model_{stage}")
