import pytest
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MptConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from metaalign.errors import LayoutError, ModelError
from metaalign.train.model.probe import WINDOW, choose_layout, tiny_copy

TREES = [
    LlamaConfig(),
    Qwen3Config(),
    GPTNeoXConfig(),
    GPT2Config(),  # its config asks for dropout, which training switches off
    MistralConfig(sliding_window=4096),
    Gemma2Config(),
    Gemma3TextConfig(),
    GraniteConfig(logits_scaling=8.0),
    Qwen3MoeConfig(),
    GptOssConfig(),
    Llama4TextConfig(),
    Phi3Config(
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 48,
            "long_factor": [2.0] * 48,
        },
        original_max_position_embeddings=4096,
        max_position_embeddings=131_072,
    ),
]


@pytest.mark.parametrize("config", TREES, ids=lambda config: config.model_type)
def test_these_architectures_are_exact_as_trees(config):
    assert choose_layout(config, "tree") == "tree"
    assert choose_layout(config, "auto") == "tree"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (Qwen3NextConfig(), "linear_attention"),
        (Lfm2Config(full_attn_idxs=[2, 5]), "conv"),
        (BloomConfig(), "BloomBlock"),
        (MptConfig(), r"MptBlock.* nats off"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_these_take_one_sequence_a_row_and_name_the_layer_type(config, named, caplog):
    assert choose_layout(config, "auto") == "single"
    assert config.model_type in caplog.text
    with pytest.raises(LayoutError, match=rf"{named}.*set model\.layout to auto or single"):
        choose_layout(config, "tree")


def test_single_may_be_asked_for():
    assert choose_layout(LlamaConfig(), "single") == "single"


def test_the_tiny_copy_keeps_every_kind_of_layer_and_shrinks_windows():
    config = Gemma3TextConfig(sliding_window=1024, num_hidden_layers=12)
    tiny = tiny_copy(config)
    assert sorted(tiny.layer_types) == ["full_attention", "sliding_attention"]
    assert tiny.num_hidden_layers == 2
    assert tiny.sliding_window == WINDOW
    assert config.num_hidden_layers == 12
    grouped = tiny_copy(LlamaConfig(num_attention_heads=32, num_key_value_heads=8))
    assert (grouped.num_attention_heads, grouped.num_key_value_heads) == (4, 2)
    assert tiny_copy(LlamaConfig(num_attention_heads=8)).num_key_value_heads == 4
    assert tiny_copy(Lfm2Config(full_attn_idxs=[9])).layer_types == ["conv", "full_attention"]


def test_a_kernel_that_the_model_lacks_is_an_error():
    with pytest.raises(ModelError, match=r"model\.attention to sdpa"):
        choose_layout(BloomConfig(), "auto", "flex_attention")


def test_a_model_that_is_no_causal_language_model_is_an_error():
    with pytest.raises(ModelError, match="no causal language model"):
        choose_layout(CONFIG_MAPPING["t5"](), "auto")


class ShoutingConfig(LlamaConfig):
    """A Llama that doubles its logits."""

    model_type = "shouting"


class ShoutingForCausalLM(LlamaForCausalLM):
    """What metaalign's table of heads does not know."""

    config_class = ShoutingConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_an_unknown_change_of_the_logits_is_an_error():
    AutoModelForCausalLM.register(ShoutingConfig, ShoutingForCausalLM)
    for layout in ("auto", "tree", "single"):
        with pytest.raises(ModelError, match="shouting: the model changes its logits") as caught:
            choose_layout(ShoutingConfig(), layout)
        assert not isinstance(caught.value, LayoutError)


class CentredConfig(LlamaConfig):
    """A Llama that takes the mean over the whole row, padding and all, from every hidden state."""

    model_type = "centred"


class CentredForCausalLM(LlamaForCausalLM):
    """What no layout feeds."""

    config_class = CentredConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.norm.register_forward_hook(lambda *call: call[2] - call[2].mean(1, keepdim=True))


@pytest.mark.parametrize("layout", ["auto", "tree", "single"])
def test_a_model_that_no_layout_feeds_is_an_error(layout):
    AutoModelForCausalLM.register(CentredConfig, CentredForCausalLM, exist_ok=True)
    with pytest.raises(LayoutError, match=r"centred: layers of type 'LlamaDecoderLayer'"):
        choose_layout(CentredConfig(), layout)


def test_a_config_that_does_not_run_is_an_error_before_training():
    broken: PretrainedConfig = LlamaConfig(hidden_act="no such function")
    with pytest.raises(ModelError, match=r"llama: a tiny copy of the model.*no such function"):
        choose_layout(broken, "auto")
