"""A run goes on from a checkpoint as if nothing had happened, on any number of workers."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metaalign.config.sections import LoraConfig
from metaalign.errors import CheckpointError, TrainingError
from metaalign.store.token_store import TokenStore
from metaalign.train.checkpoints.checkpoint_format import (
    check_identity,
    iterate_weights,
    load_checkpoint,
    read_manifest,
    step_folder,
    write_manifest,
)
from metaalign.train.engines.starting import build_policy
from metaalign.train.loop.training_loop import Reader, measure
from metaalign.train.task import Task, gather_materials
from tests.plain_engine import PlainEngine
from tests.tiny_task import tiny_task
from tests.worker_pool import run_workers
from tests.worker_scenarios import digest, run_task

EVERY_3 = {"every_steps": 3, "keep": 5}


def plain_engine(task: Task) -> PlainEngine:
    return PlainEngine(build_policy(task, None), task.config.optimizer)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def on_two(storage: Path, make_store: Callable[..., TokenStore]) -> list[dict[str, Any]]:
    """Six steps on two workers: in one go, and cut off after three."""
    names = ("whole", "broken")
    tasks = [tiny_task(storage, make_store, output=name, checkpoint=EVERY_3) for name in names]
    return run_workers("resume", tasks, storage)


def losses(run: dict[str, Any]) -> dict[int, float]:
    return {int(step): loss for step, loss in run["losses"].items()}


def test_six_steps_are_three_and_three_bit_for_bit(on_two: list[dict[str, Any]]) -> None:
    for worker in on_two:
        assert worker["same"] == [True]
    first = on_two[0]
    assert losses(first["before"]) | losses(first["after"]) == losses(first["whole"])
    assert sorted(losses(first["after"])) == [4, 5, 6]
    assert first["after"]["result"]["held_out"] == first["whole"]["result"]["held_out"]
    assert first["after"]["result"]["tokens"] == first["whole"]["result"]["tokens"]


def test_one_process_goes_on_where_two_workers_stopped(
    on_two: list[dict[str, Any]], storage: Path, make_store: Callable[..., TokenStore]
) -> None:
    task = tiny_task(storage, make_store, output="alone", checkpoint=EVERY_3)
    folder = Path(task.folder)
    folder.mkdir()
    (folder / step_folder(3)).symlink_to(storage / "whole" / step_folder(3))
    after = run_task(task, plain_engine(task))
    whole = losses(on_two[0]["whole"])
    assert losses(after) == pytest.approx({step: whole[step] for step in (4, 5, 6)}, abs=1e-5)


def test_every_stage_loads_what_one_process_wrote(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    stages = [
        tiny_task(tmp_path, make_store, checkpoint=EVERY_3, zero=settings)
        for settings in (
            {"stage": 3, "persistence_threshold": 300},
            {"stage": 2},
            {"stage": 1},
            {"stage": 0},
        )
    ]
    task = stages[0]
    engine = plain_engine(task)
    run_task(task, engine, stop_at=3)
    store, plan, _ = gather_materials(task)
    reader = Reader(store, plan.selection)
    alone = torch.tensor(measure(engine, plan.sweep(5), reader, None).logprobs)
    for worker in run_workers("load", stages, tmp_path):
        for found in worker:
            torch.testing.assert_close(torch.tensor(found).double(), alone, atol=1e-5, rtol=1e-5)


@pytest.fixture
def saved(tmp_path: Path, make_store: Callable[..., TokenStore]) -> tuple[PlainEngine, Path]:
    """An engine after one step, and its checkpoint."""
    changed = {"length": {"epochs": None, "max_steps": 1}}
    task = tiny_task(tmp_path, make_store, **changed)
    engine = plain_engine(task)
    run_task(task, engine)
    return engine, Path(task.folder) / step_folder(1)


def test_parameters_and_states_come_back_into_a_fresh_engine(
    saved: tuple[PlainEngine, Path], tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    engine, folder = saved
    fresh = plain_engine(tiny_task(tmp_path, make_store))
    manifest = load_checkpoint(fresh, folder)
    assert manifest["step"] == 1
    assert digest(fresh) == digest(engine)
    weights = dict(iterate_weights(folder))
    assert {name: tuple(value.shape) for name, value in weights.items()} == engine.shapes()
    name = next(iter(weights))
    assert torch.equal(weights[name].flatten(), engine.shard(name, None))


def test_a_file_that_goes_between_the_check_and_the_reading_is_an_error_of_ours(
    saved: tuple[PlainEngine, Path], tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    _, folder = saved
    next(folder.glob("*.distcp")).unlink()
    fresh = plain_engine(tiny_task(tmp_path, make_store))
    with pytest.raises(
        CheckpointError, match=r"step-0000001: the checkpoint cannot be read: .*distcp"
    ):
        load_checkpoint(fresh, folder)


def test_another_model_is_refused(
    saved: tuple[PlainEngine, Path], tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    _, folder = saved
    manifest = read_manifest(folder)
    manifest["shapes"]["model.lm_head.weight"] = [1, 2]
    write_manifest(folder, manifest)
    with pytest.raises(CheckpointError, match="belongs to another model or optimizer"):
        load_checkpoint(plain_engine(tiny_task(tmp_path, make_store)), folder)


def test_a_changed_resume_is_refused_by_key() -> None:
    manifest = {"identity": {"seed": 0, "store": "a", "batch.global_batch_size": 8}}
    same = {"seed": 0, "store": "a", "batch.global_batch_size": 8}
    check_identity(manifest, same, Path("run"))
    with pytest.raises(TrainingError, match=r"(?s)seed: 0 then, 1 now.*store: 'a' then, 'b' now"):
        check_identity(manifest, {**same, "seed": 1, "store": "b"}, Path("run"))


KINDS: dict[str, tuple[dict[str, Any], float]] = {
    # Settings of a run, and how far its losses may be from the undisturbed ones.
    "float32": ({}, 1e-5),
    "offloaded": ({"zero": {"persistence_threshold": 0, "offload_optimizer": "cpu"}}, 1e-5),
    # Activations are rounded to 8 bits, and what shares a row depends on the number of workers: ten
    # times what was seen. On as many workers the steps are the same in every bit.
    "bfloat16": ({}, 1e-3),
    "adapters": ({}, 1e-5),
    "second cut": ({"zero": {"persistence_threshold": 300, "hpz_partition_size": 2}}, 1e-5),
}


def kind_of_task(
    kind: str, storage: Path, make_store: Callable[..., TokenStore], world_size: int
) -> Task:
    """Ten steps of one kind of run, in a folder of its own."""
    settings, _ = KINDS[kind]
    output = f"{kind.replace(' ', '-')}-{world_size}"
    settings = {"length": {"epochs": None, "max_steps": 10}, **settings}
    task = tiny_task(storage, make_store, output=output, checkpoint=EVERY_3, **settings)
    if kind == "bfloat16":
        return replace(task, dtype="bfloat16")
    if kind == "adapters":
        model = task.config.model.model_copy(
            update={"path": task.initial, "architecture": None, "lora": LoraConfig(rank=2, alpha=8)}
        )
        config = task.config.model_copy(update={"model": model})
        return replace(task, config=config, train_vocabulary=True)
    return task


@pytest.fixture(scope="module")
def cut_anew(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., TokenStore]
) -> dict[int, dict[str, dict[int, float]]]:
    """Losses by workers, kind and step: all on two, then from step 3 on two again, one and three.

    The two that go on are named 4.
    """
    storage = tmp_path_factory.mktemp("cut_anew")
    found = {}
    for name, world_size in ((2, 2), (4, 2), (1, 1), (3, 3)):
        # Second cuts are among two workers.
        kinds = [kind for kind in KINDS if world_size == 2 or kind != "second cut"]
        tasks = [kind_of_task(kind, storage, make_store, name) for kind in kinds]
        for kind, task in zip(kinds, tasks, strict=True):
            if name != 2:
                Path(task.folder).mkdir()
                source = Path(kind_of_task(kind, storage, make_store, 2).folder) / step_folder(3)
                shutil.copytree(source, Path(task.folder) / step_folder(3))
        # DeepSpeed 0.19 makes the groups of a second cut once a process.
        runs = run_workers("whole_run", tasks, storage, world_size=world_size, fresh=True)
        found[name] = {kind: losses(run) for kind, run in zip(kinds, runs[0], strict=True)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_steps_after_a_resume_are_the_undisturbed_ones_on_as_many_workers(
    kind: str, cut_anew: dict[int, dict[str, dict[int, float]]]
) -> None:
    whole, after = cut_anew[2][kind], cut_anew[4][kind]
    assert sorted(after) == list(range(4, 11))
    assert after == {step: whole[step] for step in after}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "second cut"])
def test_the_steps_after_a_resume_are_the_undisturbed_ones_on_fewer_and_on_more_workers(
    kind: str, world_size: int, cut_anew: dict[int, dict[str, dict[int, float]]]
) -> None:
    whole, after = cut_anew[2][kind], cut_anew[world_size][kind]
    assert sorted(after) == list(range(4, 11))
    expected = {step: whole[step] for step in after}
    print(kind, world_size, max(abs(after[step] - whole[step]) for step in after))
    assert after == pytest.approx(expected, abs=KINDS[kind][1])


@pytest.mark.slow
def test_every_stage_and_precision_gets_back_what_it_saved(
    tmp_path: Path, make_store: Callable[..., TokenStore]
) -> None:
    kinds = [(3, "float32"), (2, "float32"), (1, "float32"), (0, "float32")]
    kinds += [(3, "bfloat16"), (2, "bfloat16"), (1, "bfloat16")]
    tasks = [
        replace(
            tiny_task(tmp_path, make_store, output=f"{dtype}-{stage}", zero={"stage": stage}),
            dtype=dtype,
        )
        for stage, dtype in kinds
    ]
    same = run_workers("save_and_load", tasks, tmp_path)
    assert same == [[True] * len(kinds)] * 2
