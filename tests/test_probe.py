from dataclasses import replace

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    DogeConfig,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    MptConfig,
    MusicgenConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from metaalign.errors import LayoutError, ModelError
from metaalign.train.engines.starting import check_models
from metaalign.train.model.packings import packings, probe_sequences
from metaalign.train.model.probe import check_on_device, choose_layout
from metaalign.train.model.tiny_copy import (
    LONGEST_ROW,
    LONGEST_SEQUENCE,
    WINDOW,
    Reach,
    lengths_of,
    tiny_copy,
)
from tests.tiny_task import tiny_task

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
    DogeConfig(),  # hands SDPA what it adds to the scores, one mask a head
    MixtralConfig(router_jitter_noise=0.1),  # switched off, as dropout is
    Gemma3nTextConfig(),  # layers that reuse the keys and values of others
    Gemma4TextConfig(),  # layers of other sizes than their config says
    LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
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
    assert choose_layout(config, "auto", budget=2048) == "single"
    assert config.model_type in caplog.text
    with pytest.raises(LayoutError, match=rf"{named}.*set model\.layout to auto or single"):
        choose_layout(config, "tree", budget=2048)


LONG_ROPE = Phi3Config(
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 48,
        "long_factor": [2.0] * 48,
    },
    original_max_position_embeddings=4096,
    max_position_embeddings=131_072,
)

CROSSED = [
    (GPTNeoConfig(), "window_size", 256),  # windows are cut by place in the row
    (Llama4TextConfig(), "floor_scale", 8192),  # queries are scaled by place in the row
    (LONG_ROPE, "original_max_position_embeddings", 4096),  # factors follow the longest sequence
]


@pytest.mark.parametrize(("config", "name", "length"), CROSSED)
def test_a_length_that_only_longer_rows_cross_is_named_and_shorter_rows_are_trees(
    config, name, length
):
    assert choose_layout(config, "tree", budget=length) == "tree"
    remedy = rf"up to {name} \({length} tokens\): set batch\.budget to at most {length}"
    for budget in (length + 1, 100_000):
        with pytest.raises(LayoutError, match=rf"{config.model_type}: layers of type .*{remedy}"):
            choose_layout(config, "tree", budget=budget)


def test_what_follows_the_place_in_a_row_is_exact_as_one_sequence_a_row():
    assert choose_layout(GPTNeoConfig(), "auto", budget=1024) == "single"
    assert choose_layout(Llama4TextConfig(), "auto", budget=16_384) == "single"


def test_what_follows_the_longest_sequence_of_a_batch_is_refused_in_both_layouts():
    for layout in ("auto", "single"):
        with pytest.raises(LayoutError, match=r"set model\.context to at most 4096"):
            choose_layout(LONG_ROPE, layout, budget=8192)
    assert choose_layout(LONG_ROPE, "auto", budget=8192, context=4096) == "tree"
    assert choose_layout(LONG_ROPE, "single", budget=8192, context=4096) == "single"
    assert choose_layout(LlamaConfig(), "single") == "single"


def test_flex_attention_is_tried_where_it_trains():
    assert choose_layout(LlamaConfig(), "tree", "flex_attention") == "tree"
    assert choose_layout(Gemma3TextConfig(), "tree", "flex_attention") == "tree"
    with pytest.raises(LayoutError, match=r"doge: .* nats off; set model\.attention to sdpa"):
        choose_layout(DogeConfig(), "auto", "flex_attention")


CROSSES_ALL = Reach(float("inf"), float("inf"), "tree")


def test_the_tiny_copy_keeps_every_kind_of_layer_and_shrinks_windows():
    config = Gemma3TextConfig(sliding_window=1024, num_hidden_layers=12)
    tiny = tiny_copy(config, CROSSES_ALL)
    assert sorted(tiny.layer_types) == ["full_attention", "sliding_attention"]
    assert tiny.num_hidden_layers == 2
    assert tiny.sliding_window == WINDOW
    assert config.num_hidden_layers == 12
    grouped = tiny_copy(LlamaConfig(num_attention_heads=32, num_key_value_heads=8), CROSSES_ALL)
    assert (grouped.num_attention_heads, grouped.num_key_value_heads) == (4, 2)
    assert tiny_copy(LlamaConfig(num_attention_heads=8), CROSSES_ALL).num_key_value_heads == 4
    conv = tiny_copy(Lfm2Config(full_attn_idxs=[9]), CROSSES_ALL)
    assert conv.layer_types == ["conv", "full_attention"]
    reusing = tiny_copy(Gemma3nTextConfig(), CROSSES_ALL)
    assert reusing.layer_types == ["sliding_attention", "full_attention"] * 3
    assert reusing.num_kv_shared_layers == 2
    mixed = tiny_copy(Qwen3MoeConfig(mlp_only_layers=[3]), CROSSES_ALL)
    assert (mixed.num_hidden_layers, mixed.mlp_only_layers) == (2, [1])
    uneven = tiny_copy(Gemma4TextConfig(), CROSSES_ALL)
    assert [layer.head_dim for layer in uneven.per_layer_config] == [16, 32]


def test_a_length_is_as_short_for_the_test_as_it_is_for_the_run():
    # Sequences of 1,000 tokens at most, in rows of 4,000.
    reach = Reach(1000, 4000, "tree")
    assert [reach.shorten(n) for n in (3, 999, 1000, 3999)] == [3, WINDOW] + [LONGEST_SEQUENCE] * 2
    assert reach.shorten(4000) == LONGEST_ROW
    # A row of one sequence is never longer than the model's last position, nor is the test's.
    assert Reach(1000, 1000, "single").shorten(1000) == LONGEST_SEQUENCE
    tiny = tiny_copy(GPT2Config(n_positions=1000), Reach(1000, 1000, "single"))
    assert tiny.n_positions == LONGEST_SEQUENCE
    assert set(lengths_of(LONG_ROPE)) == {
        ("max_position_embeddings", 131_072),
        ("original_max_position_embeddings", 4096),
    }


def test_packings_mix_lengths_cross_blocks_and_hold_every_sequence_once():
    sequences = probe_sequences()
    lengths = [len(sequence.tokens) for sequence in sequences]
    assert (min(lengths), max(lengths)) == (3, LONGEST_SEQUENCE)
    assert min(lengths) < WINDOW
    for layout in ("tree", "single"):
        together, apart = packings(sequences, layout)
        for packing in (together, apart):
            members = [slot for micro in packing for slot in micro.members]
            assert sorted(members) == list(range(len(sequences)))
        longest = [max(lengths[slot] for slot in micro.members) for micro in apart]
        assert longest[0] < longest[1] == LONGEST_SEQUENCE
    (micro,) = packings(sequences, "tree")[0]
    assert micro.rows.tokens.shape[1] == LONGEST_ROW
    assert micro.rows.real_tokens > 128  # more than a block of SDPA, or of FlexAttention


def test_a_kernel_that_the_model_lacks_is_an_error():
    with pytest.raises(ModelError, match=r"model\.attention to sdpa"):
        choose_layout(BloomConfig(), "auto", "flex_attention")


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


class NoisyConfig(LlamaConfig):
    """A Llama that adds noise while it trains."""

    model_type = "noisy"


class NoisyForCausalLM(LlamaForCausalLM):
    """What one draw for a shared token bends."""

    config_class = NoisyConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.norm.register_forward_hook(lambda *call: call[2] + torch.rand_like(call[2]))


def test_a_model_that_draws_noise_is_an_error_that_says_so():
    AutoModelForCausalLM.register(NoisyConfig, NoisyForCausalLM, exist_ok=True)
    with pytest.raises(ModelError, match="noisy: the model draws noise while it trains"):
        choose_layout(NoisyConfig(), "auto")


class SteepConfig(LlamaConfig):
    """A Llama whose gradient grows with the length of its rows."""

    model_type = "steep"


class SteepForCausalLM(LlamaForCausalLM):
    """What log-probabilities alone do not show."""

    config_class = SteepConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.norm.register_forward_hook(self._steepen)

    @staticmethod
    def _steepen(*call):
        output = call[2]
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * output.shape[1])


def test_a_wrong_gradient_is_an_error():
    AutoModelForCausalLM.register(SteepConfig, SteepForCausalLM, exist_ok=True)
    with pytest.raises(LayoutError, match=r"steep: .* the gradient is off by"):
        choose_layout(SteepConfig(), "auto")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BertConfig(), "a token sees those after it.*set is_decoder to true"),
        (CONFIG_MAPPING["t5"](), "no causal language model"),
        (MusicgenConfig(), "made of several language models"),
        (ModernBertDecoderConfig(), "changes its logits after the head, or the hidden states"),
        (Lfm2MoeConfig(), "does not run in transformers; its config may lack"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_refusal_says_why(config, reason):
    with pytest.raises(ModelError, match=rf"{config.model_type}: .*{reason}"):
        choose_layout(config, "auto")


CPU = torch.device("cpu")


def test_the_device_is_asked_in_the_precision_that_trains():
    run = {"context": 1024, "budget": 1024, "device": CPU}
    check_on_device(LlamaConfig(), "tree", "sdpa", dtype=torch.float32, **run)
    for config in (LlamaConfig(), Qwen3MoeConfig(), Gemma3TextConfig()):
        check_on_device(config, "tree", "sdpa", dtype=torch.bfloat16, **run)
    check_on_device(Gemma2Config(), "single", "sdpa", dtype=torch.bfloat16, **run)
    for config in (GPTNeoConfig(), MptConfig(), Qwen3NextConfig()):
        with pytest.raises(LayoutError, match="with sdpa in bfloat16 on cpu"):
            check_on_device(config, "tree", "sdpa", dtype=torch.bfloat16, **run)


def test_a_worker_refuses_a_kernel_that_is_not_exact_on_its_device(tmp_path, make_store):
    doge = {"model_type": "doge", "hidden_size": 16, "num_hidden_layers": 2}
    doge |= {"num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 256}
    task = tiny_task(tmp_path, make_store, model={"architecture": doge})
    check_models(task, CPU)
    with pytest.raises(LayoutError, match=r"doge: layers .*set model\.attention=sdpa"):
        check_models(replace(task, attention="flex_attention"), CPU)


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
