"""A training job small enough for a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metaalign.config import DPOConfig, SFTConfig
from metaalign.folders import weights_fingerprint
from metaalign.store.token_store import TokenStore
from metaalign.train.model.loading import prepare_initial
from metaalign.train.task import Task

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def settings_of(storage: Path, **changed: Any) -> dict[str, Any]:
    """Settings of a job of six steps at a learning rate that shows in every digit."""
    return {
        "storage": str(storage),
        "model": {"architecture": ARCHITECTURE},
        "length": {"epochs": None, "max_steps": 6},
        "batch": {"global_batch_size": 7, "budget": 192, "rows": 2},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1},
        "zero": {"persistence_threshold": 0},
        "workers": {"num_workers": 2},
        **changed,
    }


def tiny_task(
    storage: Path,
    make_store: Callable[..., TokenStore],
    job: str = "sft",
    *,
    context: int = 256,
    **changed: Any,
) -> Task:
    """A job over a small real store; `changed` replaces whole sections."""
    path = storage / "store"
    store = TokenStore.open(path) if path.is_dir() else make_store(path)
    model = {"sft": SFTConfig, "dpo": DPOConfig}[job]
    config = model.model_validate(settings_of(storage, **changed))
    initial = prepare_initial(
        config.model, store.template, storage / "initial", storage=str(storage)
    )
    return Task(
        config=config,
        initial=str(initial),
        weights=weights_fingerprint(initial),
        context=context,
        layout="tree",
        attention="sdpa",
        dtype="float32",
        device_type="cpu",
    )
