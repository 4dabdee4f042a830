"""Attention in blocks of queries gives SDPA's numbers, and leaves out what is not seen."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from metaalign.steps.trees import Rows, Sequence, lay_out_rows
from metaalign.train.model.attention import dense_mask
from metaalign.train.model.blocked_attention import (
    BLOCK_QUERIES,
    BLOCKED_SDPA,
    ROWS_APART,
    blocked_sdpa,
    find_blocks,
)
from metaalign.train.model.policy import Policy, to_tensors


def sequences(lengths: tuple[int, ...], row: int = 0) -> list[Sequence]:
    """Pairs after prompts of these many tokens, with responses of 30 and 50."""
    rng = np.random.default_rng(row)
    found = []
    for number, length in enumerate(lengths):
        prompt = rng.integers(1, 90, length)
        for response in (30, 50):
            tokens = np.concatenate([prompt, rng.integers(1, 90, response)])
            found.append(Sequence(tokens, length, row, number, number, 0, number))
    return found


def mask_of(rows: Rows) -> torch.Tensor:
    return dense_mask(torch.from_numpy(rows.subtree_end), torch.from_numpy(rows.positions))


def test_blocks_follow_the_trees_of_a_row() -> None:
    # Trees of 280, 180 and 140 tokens, then padding to 640. What is longer than 128 is cut into
    # even parts; the last part of a tree takes in what follows while both fit into 128.
    seen = torch.eye(640, dtype=torch.bool)
    for begin, end in ((0, 280), (280, 460), (460, 600)):
        seen[begin:end, begin:end] = torch.ones(end - begin, end - begin).tril() > 0
    found = list(find_blocks(seen[None, None], torch.float32))
    assert BLOCK_QUERIES == 128
    ends = [(block.queries.start, block.queries.stop) for block in found]
    assert ends == [(0, 93), (93, 186), (186, 280), (280, 370), (370, 460), (460, 530), (530, 640)]
    keys = [(block.keys.start, block.keys.stop) for block in found]
    assert keys == [(0, 93), (0, 186), (0, 280), (280, 370), (280, 460), (460, 530), (460, 640)]


def test_a_block_leaves_out_the_branches_that_it_does_not_see() -> None:
    # A prompt of 20 tokens with responses of 100, 100 and 100: the last one sees the prompt and
    # itself. Its block, 214 to 320, begins within the second response.
    prompt = np.arange(1, 21)
    laid = [
        Sequence(np.concatenate([prompt, np.full(100, 30 + number)]), 20, 0) for number in range(3)
    ]
    rows = lay_out_rows(laid, num_rows=1, num_targets=300, length=320)
    *_, last = find_blocks(mask_of(rows), torch.float32)
    assert last.queries == slice(213, 320)
    assert isinstance(last.keys, torch.Tensor)
    assert last.keys.tolist() == [*range(20), *range(120, 320)]
    seen = last.bias[0, 0] == 0
    assert seen[0].sum() == 20 + 94  # token 213 is the 94th of the second response
    assert seen[-1].sum() == 20 + 100


def test_short_rows_share_their_blocks_and_long_ones_do_not() -> None:
    mask = torch.ones(3, 1, 200, 200, dtype=torch.bool).tril()
    assert [block.rows for block in find_blocks(mask, torch.float32)] == [slice(0, 3)] * 2
    mask = torch.ones(2, 1, ROWS_APART, ROWS_APART, dtype=torch.bool).tril()
    rows = [block.rows for block in find_blocks(mask, torch.float32)]
    assert rows == [slice(0, 1)] * 4 + [slice(1, 2)] * 4


@pytest.mark.parametrize("lengths", [((200, 100, 60),), ((200, 100, 60), (90, 310))])
def test_blocks_change_neither_logprobs_nor_gradients(lengths: tuple[tuple[int, ...], ...]) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").double()
    laid = [each for row, own in enumerate(lengths) for each in sequences(own, row)]
    targets = sum(len(each.tokens) - each.prompt_length for each in laid)
    rows = lay_out_rows(laid, num_rows=len(lengths), num_targets=targets, length=640)
    policy = Policy(model, attention="sdpa", layout="tree", chunk_targets=targets)
    weights = torch.linspace(-1, 1, targets, dtype=torch.float64)
    found = []
    for name in (BLOCKED_SDPA, "sdpa"):
        policy.model.set_attn_implementation(name)
        policy.zero_grad()
        logprobs = policy(to_tensors(rows))
        (weights * logprobs).sum().backward()
        gradients = [parameter.grad.clone() for parameter in policy.parameters()]
        found.append([logprobs.detach(), *gradients])
    for blocked, dense in zip(*found, strict=True):
        torch.testing.assert_close(blocked, dense, atol=1e-10, rtol=1e-10)


def test_blocks_compute_fewer_pairs_than_the_square() -> None:
    # Each tree of 280 is cut into 93, 93 and 94 queries, which meet 93, 186 and 280 keys but for
    # the last: 94 queries of both responses see them all.
    rows = lay_out_rows(sequences((200, 200)), num_rows=1, num_targets=160, length=560)
    blocks = list(find_blocks(mask_of(rows), torch.float32))
    pairs = sum(block.bias.numel() for block in blocks)
    assert pairs == 2 * (93 * 93 + 93 * 186 + 94 * 280) < 560 * 560 / 2


def test_a_row_without_a_gradient_is_the_same() -> None:
    torch.manual_seed(0)
    rows = lay_out_rows(sequences((200, 200)), num_rows=1, num_targets=160, length=560)
    mask, query = mask_of(rows), torch.randn(1, 2, 560, 8)
    module = torch.nn.Identity()
    found, _ = blocked_sdpa(module, query, query[:, :1], query[:, 1:], mask, scaling=0.3)
    key, value = query[:, :1].expand(1, 2, 560, 8), query[:, 1:].expand(1, 2, 560, 8)
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(found, wanted.transpose(1, 2), atol=1e-5, rtol=1e-5)
