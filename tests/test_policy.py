from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from metaalign.steps.trees import Rows, Sequence, lay_out_rows
from metaalign.train.model import blocked_attention
from metaalign.train.model.policy import (
    Policy,
    _TargetLogprobs,
    sequence_logprobs,
    targets_per_chunk,
    to_tensors,
)

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, **GROUPED),
    "qwen3": lambda: Qwen3Config(**SIZES, **GROUPED),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
}


def build(config, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.to(dtype).eval()


def examples(responses: int, count: int = 6) -> list[Sequence]:
    """Examples over two meta-prompts, three to a row; responses of one share a first token."""
    rng = np.random.default_rng(responses)
    meta_prompts = rng.integers(0, 50, (2, 6))
    sequences = []
    for example in range(count):
        prompt = np.append(meta_prompts[example % 2], rng.integers(0, 50, 3 + example))
        first = rng.integers(0, 50, 1)
        for _ in range(responses):
            response = np.append(first, rng.integers(0, 50, rng.integers(2, 7)))
            tokens = np.append(prompt, response)
            sequences.append(Sequence(tokens, len(prompt), example // 3, occurrence=example))
    return sequences


def lay_out(sequences: list[Sequence], padding: int = 3) -> Rows:
    targets = sum(len(each.tokens) - each.prompt_length for each in sequences)
    rows = max(each.row for each in sequences) + 1
    return lay_out_rows(sequences, num_rows=rows, num_targets=targets + padding, length=128)


def plain(model: PreTrainedModel, sequences: list[Sequence]) -> Tensor:
    """(targets,) each sequence alone through the model's own forward."""
    logprobs = []
    for each in sequences:
        tokens = torch.from_numpy(each.tokens)[None]
        predicted = model(input_ids=tokens).logits.log_softmax(-1)[0, each.prompt_length - 1 : -1]
        logprobs.append(predicted.gather(1, tokens[0, each.prompt_length :, None])[:, 0])
    return torch.cat(logprobs)


def gradients(model: PreTrainedModel, logprobs: Tensor) -> dict[str, Tensor]:
    """Of a sum with another weight for each target, so that no two can be swapped."""
    model.zero_grad()
    weight = torch.linspace(-1.0, 2.0, len(logprobs), dtype=logprobs.dtype)
    (weight * logprobs).sum().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters()}


@pytest.mark.parametrize("block", [16, 128], ids=["blocks", "whole"])
@pytest.mark.parametrize("responses", [1, 2, 3], ids=["sft", "pairs", "rankings"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_trees_equal_the_sequences_run_one_by_one(architecture, responses, block, monkeypatch):
    # Rows of 128 tokens are one block of the usual size.
    monkeypatch.setattr(blocked_attention, "BLOCK_QUERIES", block)
    model = build(CONFIGS[architecture]())
    sequences = examples(responses)
    rows = lay_out(sequences)
    assert rows.real_tokens < sum(len(each.tokens) for each in sequences)
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=7)
    expected = plain(model, sequences)
    logprobs = policy(to_tensors(rows))[: len(expected)]
    assert logprobs.dtype == torch.float64
    assert (logprobs - expected).abs().max() < 1e-9
    found, wanted = gradients(model, logprobs), gradients(model, expected)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("responses", [1, 3])
def test_single_rows_equal_the_sequences_run_one_by_one(responses):
    model = build(CONFIGS["llama"]())
    sequences = [each._replace(row=row) for row, each in enumerate(examples(responses))]
    policy = Policy(model, attention="sdpa", layout="single", chunk_targets=999)
    expected = plain(model, sequences)
    logprobs = policy(to_tensors(lay_out(sequences)))[: len(expected)]
    assert (logprobs - expected).abs().max() < 1e-9
    found, wanted = gradients(model, logprobs), gradients(model, expected)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        (MistralConfig(**SIZES, **GROUPED, sliding_window=4), "sdpa"),
        (
            Gemma3TextConfig(
                **SIZES,
                **GROUPED,
                sliding_window=4,
                layer_types=["sliding_attention", "full_attention"],
                final_logit_softcapping=2.0,
            ),
            "sdpa",
        ),
        (Gemma2Config(**SIZES, **GROUPED, sliding_window=4, final_logit_softcapping=2.0), "eager"),
        (GraniteConfig(**SIZES, logits_scaling=5.0), "sdpa"),
        (HyperCLOVAXConfig(**SIZES, logits_scaling=0.2), "sdpa"),
        (CohereConfig(**SIZES, logit_scale=0.2), "sdpa"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_windows_and_what_follows_the_head_are_the_models_own(config, attention):
    model = build(config, attention=attention)
    sequences = examples(3)
    policy = Policy(model, attention=attention, layout="tree", chunk_targets=10)
    expected = plain(model, sequences)
    logprobs = policy(to_tensors(lay_out(sequences)))[: len(expected)]
    # Eager attention takes its softmax in float32.
    assert (logprobs - expected).abs().max() < (1e-9 if attention == "sdpa" else 1e-5)


def test_logits_never_exist_for_more_than_a_chunk_of_targets():
    model = build(CONFIGS["llama"]())
    rows = to_tensors(lay_out(examples(2), padding=0))
    sizes: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape)))
    targets = len(rows.target)
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=10)
    chunks = -(-targets // 10)
    policy(rows).sum().backward()
    assert sizes[:chunks] == [(10, 50)] * (chunks - 1) + [(targets - 10 * (chunks - 1), 50)]
    assert len(sizes) == 2 * chunks  # once more in the backward pass
    sizes.clear()
    whole = Policy(model, attention="sdpa", layout="tree", chunk_targets=targets)
    whole(rows).sum().backward()
    assert sizes == [(targets, 50)]


def test_log_probabilities_are_taken_in_the_memory_of_the_logits():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 11, (7,), generator=generator)
    weight = torch.randn(7, generator=generator, dtype=torch.float64)
    expected = -functional.cross_entropy(values, target, reduction="none")
    (gradient,) = torch.autograd.grad(expected @ weight, values)
    logits = values * 1
    logprobs: Any = _TargetLogprobs.apply(logits, target)
    assert (logprobs - expected).abs().max() < 1e-14
    received: list[torch.Tensor] = []
    logits.register_hook(received.append)
    (logprobs @ weight).backward(retain_graph=True)
    assert values.grad is not None
    assert (values.grad - gradient).abs().max() < 1e-14
    assert received[0].data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprobs.sum().backward()


def test_the_number_of_chunks_follows_from_the_padded_targets_alone():
    model = build(CONFIGS["llama"]())
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *call: calls.append(len(call[2])))
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=8)
    full = lay_out_rows(examples(1, 3), num_rows=2, num_targets=30, length=64)
    empty = lay_out_rows([], num_rows=2, num_targets=30, length=64)
    with torch.no_grad():
        policy(to_tensors(full))
        policy(to_tensors(empty))
    assert calls == [8, 8, 8, 6] * 2


def test_dummies_and_padding_give_finite_numbers_and_no_gradient():
    model = build(CONFIGS["llama"](), torch.float32)
    rows = lay_out_rows([], num_rows=2, num_targets=5, length=64)
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=2)
    logprobs = policy(to_tensors(rows))
    assert torch.isfinite(logprobs).all()
    sums = sequence_logprobs(logprobs, torch.from_numpy(rows.sequence), 0)
    sums.sum().backward()
    assert all((each.grad == 0).all() for each in model.parameters())


def test_padding_does_not_move_a_log_probability():
    model = build(CONFIGS["llama"]())
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=100)
    sequences = examples(2)
    targets = sum(len(each.tokens) - each.prompt_length for each in sequences)
    tight = lay_out_rows(sequences, num_rows=2, num_targets=targets, length=128)
    loose = lay_out_rows(sequences, num_rows=5, num_targets=targets + 9, length=128)
    tight_logprobs, loose_logprobs = policy(to_tensors(tight)), policy(to_tensors(loose))
    assert (loose_logprobs[:targets] - tight_logprobs).abs().max() < 1e-12


def test_lower_precision_gives_float32_log_probabilities():
    model = build(CONFIGS["llama"](), torch.bfloat16)
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=5)
    sequences = examples(2)
    logprobs = policy(to_tensors(lay_out(sequences, padding=0)))
    assert logprobs.dtype == torch.float32
    expected = plain(model.float(), sequences)
    assert (logprobs - expected).abs().mean() < 0.1


def test_sums_go_to_their_sequence_and_padding_to_none():
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0])
    sums = sequence_logprobs(logprobs, torch.tensor([0, 0, 1, 3, 4]), 4)
    assert sums.tolist() == [-3.0, -4.0, 0.0, -8.0]
    assert sums.dtype == torch.float64


def test_a_chunk_of_logits_fills_its_mebibytes():
    assert targets_per_chunk(64, 32_000) == 524  # 64 MiB / (4 bytes * 32,000)
    assert targets_per_chunk(1, 10**9) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on CUDA alone")
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_flex_attention_equals_the_sequences_run_one_by_one(architecture):
    sizes = {**SIZES, "hidden_size": 64}
    config = {
        "llama": LlamaConfig(**sizes, num_key_value_heads=2),
        "mistral": MistralConfig(**sizes, num_key_value_heads=2, sliding_window=4),
    }[architecture]
    model = build(config, torch.float32, "flex_attention").cuda().train()
    sequences = examples(3)
    targets = sum(len(each.tokens) - each.prompt_length for each in sequences)
    rows = lay_out_rows(sequences, num_rows=2, num_targets=targets, length=256)
    policy = Policy(model, attention="flex_attention", layout="tree", chunk_targets=10)
    logprobs = policy(to_tensors(rows, "cuda"))
    found = gradients(model, logprobs.cpu())
    reference = build(config, torch.float32)
    expected = plain(reference, sequences)
    assert (logprobs.cpu() - expected).abs().max() < 1e-3
    for name, gradient in gradients(reference, expected).items():
        assert (found[name].cpu() - gradient).norm() <= 1e-2 * gradient.norm(), name
