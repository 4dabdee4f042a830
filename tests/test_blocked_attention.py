"""Attention in blocks of queries gives SDPA's numbers, and leaves out what is not seen."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metaalign.steps.trees import Sequence, lay_out_rows
from metaalign.train.attention import dense_mask
from metaalign.train.blocked_attention import BLOCK_QUERIES, BLOCKED_SDPA, first_key_by_block
from metaalign.train.logprobs import Policy, to_tensors


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


def test_a_block_starts_at_the_first_key_that_it_sees() -> None:
    # Trees of 200 + 80, 100 + 80 and 60 + 80 tokens begin at 0, 280 and 460; blocks at multiples
    # of 128: those at 256 and 384 reach back into the trees that their first tokens belong to.
    rows = lay_out_rows(sequences((200, 100, 60)), num_rows=1, num_targets=240, length=640)
    mask = dense_mask(torch.from_numpy(rows.subtree_end), torch.from_numpy(rows.positions))
    first = first_key_by_block(mask)
    tree = {int(begin): end for begin, end in enumerate(rows.subtree_end[0]) if end - begin > 90}
    assert BLOCK_QUERIES == 128
    assert first[0] == first[1] == 0
    roots = [begin for begin in tree if rows.positions[0, begin] == 0]
    assert len(roots) == 3
    # A block of tokens in the middle of a tree sees its root and nothing before.
    for number, key in enumerate(first[:4]):
        inside = max(root for root in roots if root <= number * 128)
        assert key == inside
    # The last block is padding after the 600 tokens but for its start.
    assert first[4] == max(roots)


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


def test_blocks_compute_fewer_pairs_than_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    from metaalign.train import blocked_attention

    pairs = []
    plain = blocked_attention.sdpa_attention_forward

    def counted(module, query, key, *rest, **settings):
        pairs.append(query.shape[2] * key.shape[2])
        return plain(module, query, key, *rest, **settings)

    monkeypatch.setattr(blocked_attention, "sdpa_attention_forward", counted)
    rows = lay_out_rows(sequences((200, 200)), num_rows=1, num_targets=160, length=560)
    tensors = to_tensors(rows)
    mask = dense_mask(tensors.subtree_end, tensors.positions)
    query = torch.randn(1, 2, 560, 8)
    module = torch.nn.Identity()
    output, _ = blocked_attention.blocked_sdpa(module, query, query, query, mask, scaling=0.3)
    assert output.shape == (1, 560, 2, 8)
    # Blocks at 0, 128, 256, 384, 512 end at 128, 256, 384, 512, 560; the trees begin at 0 and 280.
    expected = 128 * 128 + 128 * 256 + 128 * 384 + 128 * (512 - 280) + 48 * (560 - 280)
    assert sum(pairs) == expected < 560 * 560 / 2
