"""Checks a pipeline before its first stage, and reports all problems at once."""

from collections.abc import Callable, Iterator
from pathlib import Path

from metaalign.config import (
    DPOConfig,
    EvaluateConfig,
    PipelineConfig,
    PrepareConfig,
    ServeConfig,
    SFTConfig,
    resolve,
)
from metaalign.data.sources import hub
from metaalign.data.sources.files import find_files
from metaalign.errors import ConfigError, DataError, MetaAlignError, ModelError, StorageError
from metaalign.evaluate.suites import gpus_per_worker
from metaalign.pipeline.stages import Stage
from metaalign.serve.app import check_cluster, check_port
from metaalign.train.launch.devices import choose_device
from metaalign.train.model.loading import architecture_config, find_model, load_config_of


def check(config: PipelineConfig, stages: list[Stage]) -> None:
    """Check the stages that will run.

    Raises:
        ConfigError: lists every problem, with its stage.
    """
    problems = [*_connections(config, stages)]
    for stage in stages:
        for test in _TESTS.get(type(stage.settings), ()):
            problems += [f"{stage.name}: {text}" for text in _problems(test, stage.settings)]
    problems += _cases(config)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError("\n  ".join([f"{config.name}: {count}, nothing was started", *problems]))


def _problems(test: Callable[..., None], settings: object) -> Iterator[str]:
    try:
        test(settings)
    except MetaAlignError as error:
        yield str(error)


def _connections(config: PipelineConfig, stages: list[Stage]) -> Iterator[str]:
    """Problems of inputs and outputs: an input that is missing and that no earlier stage writes, or
    a folder that two stages write."""
    written: dict[Path, str] = {}
    for stage in stages:
        for path in stage.reads:
            inside = any(path == folder or folder in path.parents for folder in written)
            if not inside and not path.exists():
                yield (
                    f"{stage.name}: it reads {str(path)!r}, which does not exist, and no earlier "
                    f"stage writes it; the earlier stages write {_list_names(written)}"
                )
        for name in stage.names if isinstance(stage.settings, SFTConfig | DPOConfig) else ():
            try:
                load_config_of(name)
            except ModelError as error:
                yield (
                    f"{stage.name}: it reads {str(resolve(config.storage, name))!r}, which does "
                    f"not exist, and no earlier stage writes it (they write "
                    f"{_list_names(written)}). As a model of the hub: {error}"
                )
        for path in stage.writes:
            if path in written:
                yield f"{stage.name}: it writes {str(path)!r}, as {written[path]} does; set output"
            written[path] = stage.name
            if not path.is_relative_to(config.storage):
                yield f"{stage.name}: its storage is not the pipeline's {config.storage!r}"
        written.update(dict.fromkeys(stage.may_write, stage.name))


def _list_names(written: dict[Path, str]) -> str:
    return ", ".join(repr(path.name) for path in written) or "nothing"


def _cases(config: PipelineConfig) -> Iterator[str]:
    """Problems of stages that need held-out examples or cases which prepare will not write."""
    if config.prepare is None or config.prepare.recipes is not None:
        return
    store = resolve(config.storage, config.prepare.output)
    evaluates = config.evaluate and resolve(config.storage, config.evaluate.store) == store
    if evaluates and not config.prepare.held_out_ratio:
        yield (
            "evaluate: prepare holds no examples out for it; set prepare.held_out_ratio above "
            "0 (a row with a split of its own keeps it), or leave evaluate out"
        )
    if config.serve:
        yield (
            "serve: it needs held-out cases, and prepare writes none without `recipes`; leave "
            "serve out of the pipeline"
        )


def _sources(config: PrepareConfig) -> None:
    problems = []
    for source in config.sources:
        try:
            if source.path is not None:
                find_files(source.path)
            if source.dataset is not None:
                hub.load(source.dataset)
        except (DataError, StorageError) as error:
            problems.append(str(error))
    if problems:
        raise DataError("; ".join(problems))


def _model(config: SFTConfig | DPOConfig) -> None:
    if config.model.architecture is not None:
        architecture_config(config.model)
        return
    source = find_model(config.model.path or "", config.storage)
    if Path(source).is_dir():
        load_config_of(source)


def _workers(config: SFTConfig | DPOConfig) -> None:
    choose_device(config.workers)


def _answerers(config: EvaluateConfig) -> None:
    gpus_per_worker(config.num_workers)


_TESTS: dict[type, tuple[Callable[..., None], ...]] = {
    PrepareConfig: (_sources,),
    SFTConfig: (_model, _workers),
    DPOConfig: (_model, _workers),
    EvaluateConfig: (_answerers,),
    ServeConfig: (check_port, check_cluster),
}
