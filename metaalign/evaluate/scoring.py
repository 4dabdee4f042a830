"""The Ray Data worker that computes log-probabilities of held-out examples with training's code.

Does not import Ray, and computes no metrics.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from metaalign.errors import ModelError
from metaalign.evaluate.held_out import HeldOut, select_held_out
from metaalign.steps.plan import Layout, Packing, Sweep
from metaalign.steps.selection import Selection
from metaalign.steps.trees import measure_forest
from metaalign.store.token_store import TokenStore
from metaalign.train.loop.training_loop import Reader, measure
from metaalign.train.model.loading import load_config_of, load_policy
from metaalign.train.model.policy import TensorRows
from metaalign.train.model.probe import choose_layout

MICRO_BATCH_TOKENS = 8192
"""Approximate number of tokens in a forward pass. Examples are never split."""

CHUNK_SIZE_MB = 128
"""MiB of float32 in a chunk of logits."""


class Scorer:
    """Computes log-probabilities for parts of the held-out examples, with one model at a time.

    Input columns of a batch of Ray Data: `folder` and `layout` of the model, and `part`, an index
    into `HeldOut.parts()`. Output columns: `folder`, `part` and `logprobs`, one list of nats per
    row, aligned with the part's responses.
    """

    def __init__(self, store: str, *, context: int, examples: int | None, seed: int) -> None:
        """The arguments are those of `select_held_out`; `store` is the token store's path."""
        held = select_held_out(
            TokenStore.open(store), context=context, examples=examples, seed=seed
        )
        assert held is not None, "the driver found held-out examples in this store"
        self._held, self._parts = held, held.parts()
        self._folder = ""
        self._engine: PolicyEngine | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = (batch["folder"], batch["layout"], batch["part"])
        found: list[list[float]] = [[] for _ in batch["part"]]
        # Two models at once might not fit in memory, so the rows of one model are adjacent.
        for row in sorted(range(len(found)), key=lambda row: str(batch["folder"][row])):
            folder, layout, part = (column[row] for column in columns)
            engine = self._load(str(folder), "tree" if layout == "tree" else "single")
            found[row] = part_logprobs(engine, self._held.store, self._parts[part]).tolist()
        return {"folder": batch["folder"], "part": batch["part"], "logprobs": found}

    def _load(self, folder: str, layout: Layout) -> "PolicyEngine":
        if self._engine is None or folder != self._folder:
            self._engine = None
            self._engine = PolicyEngine(folder, layout)
            self._folder = folder
        return self._engine


class PolicyEngine:
    """An inference-only model in this process: bfloat16 on CUDA, float32 on CPU, as in training."""

    rank, world_size = 0, 1

    def __init__(self, folder: str, layout: Layout) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            policy = load_policy(
                folder,
                deepspeed=None,
                dtype=torch.bfloat16 if self.device.type == "cuda" else torch.float32,
                attention="sdpa",
                layout=layout,
                chunk_size_mb=CHUNK_SIZE_MB,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder}: the model cannot be loaded: {error}") from error
        self.layout: Layout = layout
        self.policy: nn.Module = policy.eval().requires_grad_(False).to(self.device)

    def forward(self, rows: TensorRows, *, last: bool = True) -> Tensor:  # noqa: ARG002
        return self.policy(rows)

    def sum(self, values: Tensor) -> Tensor:
        return values


def choose_scoring_layout(folder: Path, held: HeldOut) -> Layout:
    """The layout of a model's batches of held-out examples: trees where they are exact.

    If no measured row reaches a length of the model's config, such as that of long RoPE, the
    probe does not cross it either.

    Raises:
        ModelError: the model's config cannot be read, or it is no causal language model.
        LayoutError: the model is exact with neither layout.
    """
    parts = held.parts()
    return choose_layout(
        load_config_of(folder),
        "auto",
        "sdpa",
        context=max(int(part.sequence_length.max()) for part in parts),
        budget=max(int(part.tokens.max()) for part in parts),
    )


def part_logprobs(engine: PolicyEngine, store: TokenStore, selection: Selection) -> np.ndarray:
    """(responses of the selection,) float64 summed log-probability of each, in nats."""
    layout = engine.layout
    budget = int((selection.tokens if layout == "tree" else selection.sequence_length).max())
    packing = Packing(
        selection,
        partial(measure_forest, store),
        budget=budget,
        rows=max(MICRO_BATCH_TOKENS // budget, int(selection.response_count.max())),
        layout=layout,
    )
    sweep = Sweep(packing, np.arange(len(selection)), len(selection))
    return measure(engine, sweep, Reader(store, selection), None).logprobs
