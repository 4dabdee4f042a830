"""The reference pass: every response's log-prob under the model that training starts from.

The training engine runs one forward pass before step 0 and writes it in shards; an interrupted pass
continues after the last shard. Each further reference takes one more pass, by an engine over its
weights that is closed afterwards:

    reference/3f2a.../
      00000.npy     float64 log-probs of the first examples' responses, in nats
      00001.npy     log-probs of the next examples' responses, and so on

The folder is named by the fingerprint of weights, precision, template, store and selection.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from metaalign.folders import whole_file
from metaalign.steps.plan import Sweep
from metaalign.steps.selection import ranges
from metaalign.train.engines.agreement import all_or_none, from_first
from metaalign.train.engines.interface import Engine, ForwardEngine
from metaalign.train.loop.training_loop import Reader, forward_only, put_sequences


def reference_fingerprint(sweep: Sweep, **parts: str) -> str:
    """Hash of everything that determines the log-probs of a pass.

    Args:
        parts: Fingerprints of the weights, the template and the store, and the precision.
    """
    selection = sweep.selection
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    flat, starts = ranges(selection.response_start, sweep.positions)
    response, row = selection.response[flat], selection.response_row[flat]
    for array in (selection.example[sweep.positions], starts, response, row):
        digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    digest.update(str(sweep.examples_per_step).encode())
    return digest.hexdigest()[:32]


def reference_logprobs(
    engine: Engine,
    sweep: Sweep,
    reader: Reader,
    folder: Path,
    *,
    other: Callable[[], AbstractContextManager[ForwardEngine]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Read the finished shards and compute the missing ones. Every worker must call it.

    Args:
        folder: Folder of this fingerprint, on a disk that all workers share.
        other: Opens an engine over another model, which runs the pass instead of the training
            engine and is closed afterwards. Not called if no shard is missing.
        progress: Called with the number of finished shards.

    Returns:
        (R,) float64 in nats, aligned with the selection's responses; NaN for examples outside the
        sweep.
    """
    selection = reader.selection
    result = np.full(len(selection.response), np.nan)
    done = from_first(lambda: _finished(sweep, folder))
    found = all_or_none(lambda: {step: np.load(_shard(folder, step)) for step in done})
    for step, logprobs in found.items():
        result[_responses(sweep, step)] = logprobs
    missing = [step for step in range(sweep.num_steps) if step not in found]
    opened = nullcontext(engine) if other is None or not missing else other()
    with opened as passing:
        for step, logprobs in _pass(passing, sweep, reader, missing):
            result[_responses(sweep, step)] = logprobs
            from_first(partial(_write, _shard(folder, step), logprobs))
            if progress:
                progress(step + 1)
    return result


def _pass(
    engine: ForwardEngine, sweep: Sweep, reader: Reader, steps: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each of these steps with the log-probs of its responses, in the order of
    `_responses`."""
    if not steps:
        return
    positions = np.concatenate([sweep.step(step) for step in steps])
    # Only the sweep's last step may be short, so the joined steps are cut at the same places.
    part = Sweep(sweep.packing, positions, sweep.examples_per_step)
    for number, batches in groupby(reader.batches(part, engine), key=lambda batch: batch.step):
        flat = _responses(part, number)
        logprobs = torch.zeros(len(flat), dtype=torch.float64, device=engine.device)
        for batch, values in forward_only(engine, batches):
            put_sequences(logprobs, flat, reader.selection, batch, values)
        yield steps[number], engine.sum(logprobs).cpu().numpy()


def _responses(sweep: Sweep, step: int) -> np.ndarray:
    """Indices of a step's responses among all used ones of the selection, ascending."""
    return ranges(sweep.selection.response_start, sweep.step(step))[0]


def _shard(folder: Path, step: int) -> Path:
    return folder / f"{step:05d}.npy"


def _finished(sweep: Sweep, folder: Path) -> list[int]:
    """The steps whose shards exist. Makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return [step for step in range(sweep.num_steps) if _shard(folder, step).is_file()]


def _write(path: Path, values: np.ndarray) -> None:
    # Two runs that differ only in beta may write the same reference at the same time.
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, values)
