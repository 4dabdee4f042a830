import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3NextConfig,
    T5Config,
)

from metaalign.errors import LayoutError, ModelError
from metaalign.steps.trees import Sequence, lay_out_rows
from metaalign.train.model.attention import (
    Locality,
    attention_masks,
    block_mask,
    dense_mask,
    layer_localities,
    mask_mod,
    supported_kernel,
)


def forest(length: int = 384) -> tuple[Tensor, Tensor]:
    """subtree_end and positions of two rows: trees with long shared prefixes, then padding."""
    rng = np.random.default_rng(0)
    sequences = []
    for row, shared in ((0, 140), (0, 30), (1, 20)):
        prompt = rng.integers(1, 99, shared)
        tails = (rng.integers(1, 99, n) for n in (40, 25))
        sequences += [Sequence(np.append(prompt, tail), shared, row) for tail in tails]
    rows = lay_out_rows(sequences, num_rows=2, num_targets=195, length=length)
    return torch.from_numpy(rows.subtree_end), torch.from_numpy(rows.positions)


def by_definition(ends: Tensor, depths: Tensor, locality: Locality) -> Tensor:
    """(R, L, L) the mask, one element after the other."""
    rows, length = ends.shape
    mask = np.zeros((rows, length, length), dtype=bool)
    for row, (end, depth) in enumerate(zip(ends.tolist(), depths.tolist(), strict=True)):
        for k in range(length):
            for q in range(k, end[k]):
                near = locality.window is None or depth[q] - depth[k] < locality.window
                chunk = locality.chunk
                mask[row, q, k] = near and (not chunk or depth[q] // chunk == depth[k] // chunk)
    return torch.from_numpy(mask)


LOCALITIES = [Locality(), Locality(window=3), Locality(window=130), Locality(chunk=50)]


def test_a_fork_by_hand():
    # "a b c" and "a b d": c and d see a and b and themselves, never each other; then padding.
    ends, depths = torch.tensor([[4, 4, 3, 4, 5]]), torch.tensor([[0, 1, 2, 2, 0]])
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert dense_mask(ends, depths)[0, 0].int().tolist() == expected
    # Fewer than 2 depths up: d, at row position 3, still sees b at row position 1.
    expected[2] = [0, 1, 1, 0, 0]
    expected[3] = [0, 1, 0, 1, 0]
    assert dense_mask(ends, depths, Locality(window=2))[0, 0].int().tolist() == expected
    # Chunks of two depths: {a, b} and {c}, {d}.
    expected[2] = [0, 0, 1, 0, 0]
    expected[3] = [0, 0, 0, 1, 0]
    assert dense_mask(ends, depths, Locality(chunk=2))[0, 0].int().tolist() == expected


@pytest.mark.parametrize("locality", LOCALITIES)
def test_the_dense_mask_is_the_rule(locality):
    ends, depths = forest()
    dense = dense_mask(ends, depths, locality)
    assert dense.shape == (2, 1, 384, 384)
    assert torch.equal(dense[:, 0], by_definition(ends, depths, locality))


@pytest.mark.parametrize("locality", LOCALITIES)
def test_the_flex_rule_is_the_dense_mask_at_every_index_and_padding_sees_itself(locality):
    ends, depths = forest()
    dense = dense_mask(ends, depths, locality)
    indices = torch.meshgrid(*(torch.arange(n) for n in dense.shape), indexing="ij")
    assert torch.equal(mask_mod(ends, depths, locality)(*indices), dense)
    assert dense.diagonal(dim1=2, dim2=3).all()
    padding = (ends == torch.arange(1, 385)) & (depths == 0)
    assert padding.sum(1).tolist() == [384 - 140 - 65 - 30 - 65, 384 - 20 - 65]
    assert (dense[:, 0].sum(-1)[padding] == 1).all()
    assert (dense[:, 0].sum(-2)[padding] == 1).all()


@pytest.mark.parametrize("locality", LOCALITIES)
def test_blocks_leave_out_only_what_nobody_sees(locality):
    ends, depths = forest()
    dense = dense_mask(ends, depths, locality)
    blocks = block_mask(ends, depths, locality)
    tiles = dense.unflatten(3, (3, 128)).unflatten(2, (3, 128))
    kept = blocks.to_dense().bool()
    full = torch.zeros_like(kept)
    for row, q in np.ndindex(2, 3):
        count = blocks.full_kv_num_blocks[row, 0, q]
        full[row, 0, q, blocks.full_kv_indices[row, 0, q, :count].long()] = True
    assert not (tiles.any(5).any(3) & ~kept).any()
    assert tiles.all(5).all(3)[full].all()
    assert not kept.all()


def test_blocks_are_those_that_torch_finds_by_trying_every_index():
    ends, depths = forest()
    found = create_block_mask(mask_mod(ends, depths), 2, None, 384, 384, device="cpu")
    built = block_mask(ends, depths)
    assert torch.equal(built.to_dense(), found.to_dense())
    assert torch.equal(built.full_kv_num_blocks, found.full_kv_num_blocks)
    assert torch.equal(built.q_num_blocks, found.q_num_blocks)
    assert built.shape == (2, 1, 384, 384)


def test_each_layer_type_gets_its_own_mask():
    ends, depths = forest()
    config = Gemma3TextConfig(sliding_window=7)
    masks = attention_masks(
        config, positions=depths, subtree_end=ends, kernel="sdpa", dtype=torch.float32
    )
    assert set(masks) == {"full_attention", "sliding_attention"}
    assert torch.equal(masks["full_attention"], dense_mask(ends, depths))
    assert torch.equal(masks["sliding_attention"], dense_mask(ends, depths, Locality(window=7)))


def test_eager_attention_adds_its_mask():
    ends, depths = forest()
    config = LlamaConfig()
    added = attention_masks(
        config, positions=depths, subtree_end=ends, kernel="eager", dtype=torch.float64
    )
    assert added.dtype == torch.float64
    assert torch.equal(added == 0, dense_mask(ends, depths))
    assert added.min() < -1e300


def test_windows_are_read_where_the_model_reads_them():
    assert layer_localities(LlamaConfig()) == {None: Locality()}
    assert layer_localities(MistralConfig(sliding_window=9)) == {None: Locality(window=9)}
    assert layer_localities(MistralConfig(sliding_window=None)) == {None: Locality()}
    assert layer_localities(Qwen2Config(use_sliding_window=False)) == {None: Locality()}
    windowed = Qwen2Config(
        use_sliding_window=True, sliding_window=9, max_window_layers=1, num_hidden_layers=2
    )
    assert layer_localities(windowed)["sliding_attention"] == Locality(window=9)
    with pytest.raises(LayoutError, match="linear_attention"):
        layer_localities(Qwen3NextConfig())


def test_the_kernel_is_one_that_the_model_has():
    assert supported_kernel(LlamaConfig(), "sdpa") == "sdpa"
    assert supported_kernel(LlamaConfig(), "flex_attention") == "flex_attention"
    assert supported_kernel(Gemma2Config(), "sdpa") == "eager"
    with pytest.raises(ModelError, match=r"bloom.*model\.attention to sdpa"):
        supported_kernel(BloomConfig(), "flex_attention")
    with pytest.raises(ModelError, match="t5"):
        supported_kernel(T5Config(), "sdpa")
