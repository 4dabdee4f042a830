"""Prepares the initial model on the driver, and loads the policy on every worker.

Imports neither data nor losses.
"""

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
)
from transformers.integrations.deepspeed import set_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from metaalign.config.sections import ModelConfig
from metaalign.errors import ModelError, did_you_mean
from metaalign.folders import weights_fingerprint
from metaalign.template import TEMPLATE_FILE, Template
from metaalign.train.model.attention import supported_kernel
from metaalign.train.model.context import context_of, state_context, stated_context
from metaalign.train.model.policy import Policy, targets_per_chunk
from metaalign.train.model.vocabulary import check_tokenizer, grown_model, needed_rows, rows_of

LEGACY_KEYS = ("rope_theta", "rope_scaling", "torch_dtype")
"""Keys that transformers still accepts but no longer lists."""

transformers_logging.disable_progress_bar()  # one bar per worker would hide the run's own

logger = logging.getLogger(__name__)


def prepare_initial(config: ModelConfig, template: Template, folder: Path, *, storage: str) -> Path:
    """The folder of the initial model, whose vocabulary contains the template's tokens.

    A local folder that fits and contains a template is used unchanged. Otherwise a model, random or
    pretrained, is written beside `folder` with its tokenizer. Its name has a hash of its origin, so
    that a run with the same origin reuses it and no run replaces another's model. Weights that need
    no change are linked.

    Args:
        folder: Becomes a link to the written folder, so that the last one can be named.

    Returns:
        The model's folder, not the link.

    Raises:
        ModelError: the model does not suit, or a folder is in the link's place. The message names
            the model and the setting to change.
    """
    size = needed_rows(template)
    source = None if config.path is None else find_model(config.path, storage)
    fits = False
    model_config = architecture_config(config) if source is None else load_config_of(source)
    context = context_of(model_config, config.context)
    states_context = stated_context(model_config) is not None
    if source is not None:
        check_not_quantized(model_config, source)
        check_tokenizer(source, template)
        fits = Path(source).is_dir() and rows_of(model_config) >= size
        if fits and states_context and Path(source, TEMPLATE_FILE).is_file():
            return Path(source)
    identity = _identity(config, source, template, None if states_context else context)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    made = folder.with_name(f"{folder.name}-{digest}")
    if not made.is_dir():
        partial = made.with_name(f".{made.name}.{uuid.uuid4().hex}")
        if source is None:
            _random(config, template, size).save_pretrained(partial)
        elif fits:
            _link_model(Path(source), partial)
        else:
            grown_model(source, size, config.seed).save_pretrained(partial)
        if not states_context:
            _write_context(partial, context)
        template.save(partial)
        (partial / "initial.json").write_text(identity, encoding="utf-8")
        _publish(partial, made)
    _point_link(folder, made)
    return made


def _publish(partial: Path, made: Path) -> None:
    try:
        partial.rename(made)
    except OSError:
        if not made.is_dir():
            raise
        shutil.rmtree(partial)  # another driver has just made the same model


def _point_link(link: Path, target: Path) -> None:
    new = link.with_name(f".{link.name}.{uuid.uuid4().hex}")
    new.symlink_to(target.name)
    try:
        new.replace(link)
    except IsADirectoryError as error:
        new.unlink()
        raise ModelError(
            f"{link} is a folder, and training must put a link to its initial model there; "
            "rename it, or delete it if an earlier version of metaalign wrote it"
        ) from error


def may_be_hub_name(path: str) -> bool:
    """Whether a model setting can be a hub name, such as gpt2, if there is no such folder."""
    return not Path(path).is_absolute() and path.count("/") <= 1


def find_model(path: str, storage: str, setting: str = "model.path") -> str:
    """The folder of a model setting if it exists, otherwise the setting as a hub name.

    Raises:
        ModelError: there is no such folder, and it cannot be a hub name.
    """
    local = Path(storage) / path
    if local.is_dir():
        return str(local)
    if not may_be_hub_name(path):
        raise ModelError(
            f"{setting} {path!r}: there is no such folder; give a Hugging Face folder, the name "
            f"of one under the storage {storage!r}, or a hub name"
        )
    return path


def find_reference(path: str, template: Template, storage: str) -> str:
    """The folder or hub name of a further reference, which must use the store's token ids.

    Raises:
        ModelError: it does not exist, or its tokenizer differs.
    """
    setting = "loss.references"
    source = find_model(path, storage, setting)
    check_tokenizer(source, template, setting)
    size, rows = needed_rows(template), rows_of(load_config_of(source))
    if rows < size:
        raise ModelError(
            f"{setting} {path!r} has a vocabulary of {rows} rows and the token store needs {size}: "
            "it has not seen the template's tokens; name a model that was trained on such a store"
        )
    return source


def load_config_of(source: str | Path) -> PretrainedConfig:
    """The transformers config of a folder or hub name.

    Raises:
        ModelError: it does not exist, or transformers does not support its model type.
    """
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model.path {str(source)!r} cannot be read: {error}") from error


def check_not_quantized(config: PretrainedConfig, source: str | Path) -> None:
    """Refuse quantized weights, which have no gradient.

    Raises:
        ModelError: the folder holds quantized weights.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model.path {str(source)!r} holds quantized weights, and metaalign has no QLoRA; give "
            "the full-precision model, with model.lora for less memory"
        )


def architecture_config(
    config: ModelConfig, *, vocab_size: int | None = None, **token_ids: int | None
) -> PretrainedConfig:
    """The transformers config that `model.architecture` describes.

    Raises:
        ModelError: names the key that is wrong.
    """
    settings: dict[str, Any] = {**(config.architecture or {}), **token_ids}
    model_type = settings.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(str(model_type), list(CONFIG_MAPPING.keys()))
        raise ModelError(
            f"model.architecture.model_type {model_type!r} is none of transformers'{hint}"
        )
    known = {*CONFIG_MAPPING[model_type]().to_dict(), *LEGACY_KEYS}
    unknown = sorted(set(settings) - known)
    if unknown:
        names = ", ".join(name + did_you_mean(name, sorted(known)) for name in unknown)
        raise ModelError(f"model.architecture: {model_type} has no key {names}")
    if vocab_size is not None and settings.setdefault("vocab_size", vocab_size) < vocab_size:
        raise ModelError(
            f"model.architecture.vocab_size {settings['vocab_size']} is smaller than the "
            f"tokenizer's {vocab_size}; leave it out, and it is taken from the tokenizer"
        )
    try:
        return AutoConfig.for_model(model_type, **settings)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"model.architecture: {error}") from error


def load_policy(
    folder: str | Path,
    *,
    deepspeed: dict[str, Any] | None,
    dtype: torch.dtype,
    attention: Literal["sdpa", "flex_attention"],
    layout: Literal["tree", "single"],
    chunk_size_mb: int,
    activation_checkpointing: bool = False,
    adapt: Callable[[Any], Any] | None = None,
) -> Policy:
    """The policy, in training mode. At ZeRO stage 3 no worker ever holds the whole model.

    Args:
        deepspeed: DeepSpeed's config dict. None without DeepSpeed.
        adapt: Adds adapters to the model. None trains all weights.
    """
    config = load_config_of(folder)
    switch_off_noise(config)
    config.use_cache = False
    stage = 0 if deepspeed is None else deepspeed["zero_optimization"]["stage"]
    # transformers holds only a weak reference to these settings, so they must live until the load.
    settings = _announce_zero3(deepspeed) if deepspeed is not None and stage == 3 else None
    kernel = supported_kernel(config.get_text_config(), attention)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=kernel
    )
    del settings
    if adapt is not None:
        adapt(model)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    vocab_size = rows_of(config)
    chunk_targets = targets_per_chunk(chunk_size_mb, vocab_size)
    policy = Policy(model, attention=kernel, layout=layout, chunk_targets=chunk_targets)
    return policy.train()


def check_carried(config: PretrainedConfig) -> None:
    """Refuse a model with tensors that are not trained.

    Checkpoints and exports contain only trainable parameters.

    Raises:
        ModelError: the model has such tensors. The message names one.
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    saved = set(model.state_dict())
    left = sorted(name for name, _ in model.named_buffers() if name in saved)
    left += [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if left:
        raise ModelError(
            f"{config.model_type}: {len(left)} tensors of the model are not trained, such as "
            f"{left[0]!r}, and checkpoints would lose them; such models are not supported yet"
        )


def check_weights(folder: str | Path, expected: str) -> None:
    """Check that a folder still holds the initial model of a run.

    Args:
        expected: Fingerprint of the initial model's weights.

    Raises:
        ModelError: the model was replaced.
    """
    found = weights_fingerprint(folder)
    if found != expected:
        raise ModelError(
            f"{folder}: the run started from a model with fingerprint {expected[:12]!r}, and this "
            f"one has {found[:12]!r}: something replaced it; put the model back, or train anew "
            "under another `output`"
        )


class _Zero3Settings:
    """The part of HfDeepSpeedConfig, which needs accelerate, that from_pretrained uses."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True


def _announce_zero3(config: dict[str, Any]) -> object:
    """Make from_pretrained use zero.Init as long as the returned object lives."""
    settings: Any = _Zero3Settings(config)
    set_hf_deepspeed_config(settings)
    return settings


def _link_model(source: Path, folder: Path) -> None:
    """Link weights and config of a Hugging Face folder into `folder`, without its tokenizer."""
    folder.mkdir(parents=True)
    for pattern in ("*config.json", "*.safetensors", "*.bin", "*.index.json"):
        for file in source.glob(pattern):
            if file.name != "tokenizer_config.json":
                (folder / file.name).symlink_to(file.resolve())


def _random(config: ModelConfig, template: Template, size: int) -> Any:
    ids = {"bos_token_id": template.bos_id, "eos_token_id": template.eos_id}
    ids["pad_token_id"] = template.eos_id
    model_config = architecture_config(config, vocab_size=size, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)


def _write_context(folder: Path, context: int) -> None:
    """Write the context length into a folder's config, which may be a link to another's."""
    model_config = load_config_of(folder)
    (folder / "config.json").unlink()
    state_context(model_config, context)
    model_config.save_pretrained(folder)


def _identity(
    config: ModelConfig, source: str | None, template: Template, context: int | None
) -> str:
    """The origin of an initial model as JSON, with the context length if its config gets it."""
    weights = weights_fingerprint(source) if source and Path(source).is_dir() else source
    identity = {"architecture": config.architecture, "seed": config.seed, "source": weights}
    if context is not None:
        identity["context"] = context
    return json.dumps({**identity, "template": template.fingerprint}, sort_keys=True)


def switch_off_noise(config: PretrainedConfig) -> None:
    """Set dropout and router jitter to 0, since sequences that share a token would share its random
    numbers."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            switch_off_noise(value)
        noisy = "drop" in name or "jitter" in name
        if noisy and isinstance(value, float) and value > 0:
            logger.info("%s set from %s to 0: rows share tokens", name, value)
            setattr(config, name, 0.0)
