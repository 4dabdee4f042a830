"""Computes the log-probability of every target of a row. Imports no loss, store or Ray.

Dimensions: R = rows, L = length of a row, T = targets, S = sequences, C = targets of a chunk,
H = hidden size, V = vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from metaalign.steps.plan import Layout
from metaalign.steps.trees import Rows
from metaalign.train.model.attention import Kernel, attention_masks
from metaalign.train.model.blocked_attention import BLOCKED_SDPA


class TensorRows(NamedTuple):
    """The arrays of `Rows` that the policy uses, as int64 tensors on its device."""

    tokens: Tensor
    """(R, L)"""
    positions: Tensor
    """(R, L)"""
    subtree_end: Tensor
    """(R, L)"""
    predictor: Tensor
    """(T,)"""
    target: Tensor
    """(T,)"""


def to_tensors(rows: Rows, device: torch.device | str = "cpu") -> TensorRows:
    """The rows on a device."""
    arrays = (getattr(rows, name) for name in TensorRows._fields)
    return TensorRows(*(torch.from_numpy(array).to(device) for array in arrays))


def targets_per_chunk(size_mb: int, vocab_size: int) -> int:
    """Targets whose float32 logits fill a chunk of this many MiB; at least one."""
    return max(1, size_mb * 2**20 // (4 * vocab_size))


class Policy(nn.Module):
    """A causal language model that takes rows.

    It computes logits for one chunk of targets at a time. The number of chunks, ceil(T / C),
    depends only on the plan and is the same on every worker, since under ZeRO-3 every call of the
    head is a collective. The head is called as a module for the same reason.
    """

    def __init__(
        self, model: PreTrainedModel, *, attention: Kernel, layout: Layout, chunk_targets: int
    ) -> None:
        """Wrap an unmodified Hugging Face model. With SDPA, trees use `blocked_attention`.

        Args:
            attention: Kernel that the model was loaded with, from `supported_kernel`.
            layout: "single" leaves masks and positions to the model.
            chunk_targets: C. If one chunk holds all targets, its logits are kept for the backward
                pass. If there are several chunks, each is recomputed there.
        """
        super().__init__()
        loaded = model.config.get_text_config()._attn_implementation
        assert loaded in (attention, BLOCKED_SDPA), f"loaded with {loaded!r}, fed for {attention!r}"
        if attention == "sdpa" and layout == "tree":
            model.set_attn_implementation(BLOCKED_SDPA)
        self.model = model
        self.attention: Kernel = attention
        self.layout: Layout = layout
        self.chunk_targets = chunk_targets

    def forward(self, rows: TensorRows) -> Tensor:
        """(T,) log-probabilities in nats; float64 for a float64 model, otherwise float32."""
        arguments: dict[str, Any] = {}
        if self.layout == "tree":
            arguments["position_ids"] = rows.positions
            arguments["attention_mask"] = attention_masks(
                self.model.config.get_text_config(),
                positions=rows.positions,
                subtree_end=rows.subtree_end,
                kernel=self.attention,
                dtype=self.model.dtype,
            )
        output = decoder_of(self.model)(input_ids=rows.tokens, use_cache=False, **arguments)
        # An embedding lookup: if several targets have the same predictor, its gradient adds theirs
        # in a fixed order, unlike indexing.
        hidden = functional.embedding(rows.predictor, output.last_hidden_state.flatten(0, 1))
        if len(hidden) <= self.chunk_targets:
            return self._chunk(hidden, rows.target)
        chunks = zip(
            hidden.split(self.chunk_targets), rows.target.split(self.chunk_targets), strict=True
        )
        return torch.cat([checkpoint(self._chunk, *chunk, use_reentrant=False) for chunk in chunks])

    def _chunk(self, hidden: Tensor, target: Tensor) -> Tensor:
        """(C, H) hidden states and (C,) token ids -> (C,) log-probabilities."""
        logits = head_of(self.model)(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = after_head(self.model.config.get_text_config())(logits)
        logprobs: Any = _TargetLogprobs.apply(logits, target)
        return logprobs


class _TargetLogprobs(torch.autograd.Function):
    """Log-softmax at the targets, computed in the memory of the logits.

    The logits are overwritten by log-probabilities in the forward pass, and by their gradient in
    the backward pass, which can therefore run only once. Cross entropy would hold three tensors of
    that size at its peak.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        torch.log_softmax(logits, -1, out=logits)
        ctx.save_for_backward(logits, target)
        return logits.gather(1, target[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logprobs, target = ctx.saved_tensors
        share = gradients[0][:, None]
        # d log p_t / d logit_v = [v = t] - p_v
        gradient = logprobs.exp_().mul_(-share)
        return gradient.scatter_add_(1, target[:, None], share), None


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head. `get_decoder` of Llama-4's text model returns the model itself,
    and that of ModernBERT its head."""
    decoder = model.get_decoder()
    return model.model if decoder is model or decoder is head_of(model) else decoder


def head_of(model: PreTrainedModel) -> nn.Module:
    """The model's projection from hidden states to the vocabulary."""
    head = model.get_output_embeddings()
    assert head is not None, f"{model.config.model_type} has no output embeddings"
    return head


def sequence_logprobs(logprobs: Tensor, sequence: Tensor, num_sequences: int) -> Tensor:
    """Sums by sequence, in float64, so that long responses do not lose precision.

    Args:
        logprobs: (T,) of the policy, in nats.
        sequence: (T,) slots. Padding targets belong to slot S and are dropped.

    Returns:
        (S,) float64, in nats.
    """
    sums = logprobs.new_zeros(num_sequences + 1, dtype=torch.float64)
    return sums.index_add(0, sequence, logprobs.double())[:num_sequences]


def after_head(config: PretrainedConfig) -> Callable[[Tensor], Tensor]:
    """The function that the model applies to its logits after the vocabulary projection.

    The probe compares it with the model, and refuses an architecture that is missing here.
    """
    for name, change in _AFTER_HEAD.items():
        value = getattr(config, name, None)
        if value is not None:
            if (config.model_type, name) in _MULTIPLIES_BY:
                change = _multiply
            return lambda logits, change=change, value=value: change(logits, value)
    return lambda logits: logits


def _cap(logits: Tensor, value: float) -> Tensor:
    return torch.tanh(logits / value) * value


def _multiply(logits: Tensor, value: float) -> Tensor:
    return logits * value


def _divide(logits: Tensor, value: float) -> Tensor:
    return logits / value


_AFTER_HEAD: dict[str, Callable[[Tensor, float], Tensor]] = {
    "final_logit_softcapping": _cap,  # Gemma
    "logits_soft_cap": _cap,  # RecurrentGemma
    "logits_scaling": _divide,  # Granite
    "logit_scale": _multiply,  # Cohere
    "lm_head_multiplier": _multiply,  # Falcon-H1
}
_MULTIPLIES_BY = {("hyperclovax", "logits_scaling")}
