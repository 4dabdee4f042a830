"""The context length of a model: from its config, or from `model.context`.

Training takes the smaller of the two. Generation and serving take what the exported config states,
which `model.context` lowers for training alone; evaluation measures held-out examples as long as
training took them. Reads neither weights nor data.
"""

from transformers import PretrainedConfig

from metaalign.errors import ModelError

STATED_AS = "max_position_embeddings"
"""Key for the context length in the exported config of a model that has none. Other servers read it
too."""

_KEYS = (
    STATED_AS,
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_target_positions",
    "model_max_length",
    "context_length",
)
"""Keys of the context length in the configs of architectures. The first positive number is used."""


def text_config_of(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the language model, which is nested in the config of a multimodal model.

    Raises:
        ModelError: the model has several language models.
    """
    try:
        return config.get_text_config()
    except ValueError as error:
        raise ModelError(
            f"{config.model_type}: the model is made of several language models, and metaalign "
            "trains one causal language model; give another in model.path"
        ) from error


def stated_context(config: PretrainedConfig) -> int | None:
    """Context length in the model's config: the largest number of tokens, prompt and response
    together.

    None if the config has none, as with Bloom, Mamba and other models without a position table.
    """
    text_config = text_config_of(config)
    for name in _KEYS:
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def context_of(config: PretrainedConfig, asked: int | None = None) -> int:
    """Largest number of tokens in a sequence, prompt and response together.

    Args:
        asked: The setting `model.context`. None uses the context length in the config.

    Raises:
        ModelError: neither gives one, or the setting is larger than the config's.
    """
    stated = stated_context(config)
    if stated is None and asked is None:
        raise ModelError(
            f"{config.model_type}: the model's config.json does not say how many tokens the model "
            "takes; set model.context to the longest sequence to train on, such as 2048. The "
            f"exported model states it as {STATED_AS}"
        )
    if stated is not None and asked is not None and asked > stated:
        raise ModelError(
            f"model.context {asked}: the model takes {stated} tokens; set model.context to at most "
            f"{stated}, or leave it out"
        )
    found = stated if asked is None else asked
    assert found is not None
    return found


def state_context(config: PretrainedConfig, context: int) -> None:
    """Write the context length into the config of a model that has none."""
    if stated_context(config) is None:
        setattr(text_config_of(config), STATED_AS, context)
