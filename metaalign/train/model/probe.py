"""The probe, which finds the layouts that an architecture supports, before a worker starts.

transformers does not report a mask that a model ignores. So the probe makes a tiny copy of the
model, with every layer type and with every length in the config shorter than the test. It feeds the
copy with rows, packed in two ways, with the kernel that trains, and compares log-probabilities and
gradients with those of `model.forward` on one sequence at a time. Uses neither data nor weights.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from metaalign.errors import LayoutError
from metaalign.steps.plan import Layout
from metaalign.steps.trees import Sequence
from metaalign.train.model.attention import Kernel, layer_localities, supported_kernel
from metaalign.train.model.context import stated_context, text_config_of
from metaalign.train.model.packings import MicroBatch, packings, probe_sequences
from metaalign.train.model.policy import Policy, decoder_of, to_tensors
from metaalign.train.model.tiny_copy import VOCABULARY, Reach, lengths_of
from metaalign.train.model.tiny_model import FEEDING_ERRORS, Copies, check_feedable, draw_copies

Attention = Literal["sdpa", "flex_attention"]

logger = logging.getLogger(__name__)


class Tolerance(NamedTuple):
    """Largest differences that rounding may cause. A mask that a model ignores causes far larger
    ones."""

    logprob: float
    """Largest difference of a log-probability, in nats. In bfloat16 the mean difference, since a
    token may be routed to another expert there."""
    gradient: float
    """Norm of the gradients' difference, as a share of the norm of the gradient."""


TOLERANCES = {
    torch.float64: Tolerance(1e-4, 1e-4),
    torch.float32: Tolerance(1e-4, 1e-3),
    torch.bfloat16: Tolerance(0.05, 0.2),
}


def choose_layout(
    config: PretrainedConfig,
    layout: Literal["auto", "tree", "single"],
    attention: Attention = "sdpa",
    *,
    context: int | None = None,
    budget: int | None = None,
) -> Layout:
    """The layout to train with: trees if they are exact and allowed, else one sequence per row.

    The test does not cross a length in the config that no row of the run crosses.

    Args:
        context: Number of tokens in the run's longest sequence. None uses the model's config.
        budget: Number of tokens in the run's longest row. None has no bound.

    Raises:
        LayoutError: no allowed layout is exact. The message names the layer type.
        ModelError: the kernel is not supported, or no layout supports such a model.
    """
    config = text_config_of(config)
    reaches = _reaches(config, context, budget)
    if layout != "single":
        refusal = _unmasked(config)
        if refusal is None:
            refusal = _refusal(config, attention, reaches["tree"])
            if refusal is None:
                return "tree"
            refusal += _shorter(config, attention, reaches["tree"])
        if layout == "tree":
            raise LayoutError(f"{refusal}; or set model.layout to auto or single")
        logger.warning("%s; taking one sequence a row", refusal)
    refusal = _refusal(config, attention, reaches["single"])
    if refusal is not None:
        raise LayoutError(refusal + _remedy(config, attention, reaches["single"]))
    return "single"


def check_on_device(
    config: PretrainedConfig,
    layout: Layout,
    attention: Attention,
    *,
    context: int,
    budget: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Run the probe on the device and in the precision of training, which the driver may lack.

    Raises:
        LayoutError: the layout is not exact. The message names the layer type and the setting.
    """
    config = text_config_of(config)
    reach = _reaches(config, context, budget)[layout]
    refusal = _refusal(config, attention, reach, device=device, dtype=dtype)
    if refusal is None:
        return
    refusal += f", with {attention} in {str(dtype).removeprefix('torch.')} on {device.type}"
    if attention == "flex_attention":
        refusal += "; set model.attention=sdpa"
    raise LayoutError(refusal)


def _reaches(
    config: PretrainedConfig, context: int | None, budget: int | None
) -> dict[Layout, Reach]:
    """The longest sequences and rows of a run in each layout. A row with a single sequence is never
    longer than the longest sequence."""
    row = float("inf") if budget is None else budget
    sequence = min(row, context or stated_context(config) or float("inf"))
    return {"tree": Reach(sequence, row, "tree"), "single": Reach(sequence, sequence, "single")}


def _unmasked(config: PretrainedConfig) -> str | None:
    """The error if the model has layers that do not follow a mask; else None."""
    try:
        layer_localities(config)
    except LayoutError as error:
        return str(error)
    return None


def _shorter(config: PretrainedConfig, attention: Attention, reach: Reach) -> str:
    """A clause for a message: the length in the config up to which the layout is exact, if any."""
    setting = "batch.budget" if reach.layout == "tree" else "model.context"
    lengths = {value: name for name, value in lengths_of(config) if 8 <= value < reach.row}
    for length in sorted(lengths, reverse=True):
        shorter = Reach(min(reach.sequence, length), length, reach.layout)
        if _refusal(config, attention, shorter) is None:
            return (
                f"; it is exact up to {lengths[length]} ({length} tokens): set {setting} to at "
                f"most {length}"
            )
    return ""


def _remedy(config: PretrainedConfig, attention: Attention, reach: Reach) -> str:
    """A clause for a message: what to change if even one sequence per row is not exact."""
    if attention == "flex_attention" and _refusal(config, "sdpa", reach) is None:
        return "; set model.attention to sdpa"
    return _shorter(config, attention, reach) or "; no layout feeds this model, so take another"


def _refusal(
    config: PretrainedConfig,
    attention: Attention,
    reach: Reach,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> str | None:
    """Why a layout is not exact for this model; None if it is.

    Args:
        dtype: None is float64, or float32 if the model's code does not support float64.

    Raises:
        ModelError: no layout supports such a model.
    """
    kernel = supported_kernel(config, attention)
    copies = draw_copies(config, reach, kernel, device=torch.device(device), dtype=dtype)
    how = "prefix trees" if reach.layout == "tree" else "one sequence a row"
    layers = f"layers of type {_layer_types(copies.fed)}"
    try:
        with _uncompiled(kernel, copies.fed.device):
            found = _difference(copies, kernel, reach.layout)
    except FEEDING_ERRORS as error:
        found = f"{type(error).__name__}: {error}"
    if found is None:
        return None
    check_feedable(copies.reference)
    return f"{config.model_type}: {layers} cannot be fed as {how}: {found}"


def _difference(copies: Copies, kernel: Kernel, layout: Layout) -> str | None:
    """The difference between rows and single sequences, as text; None if it is only rounding."""
    sequences = probe_sequences()
    trains = not (kernel == "flex_attention" and copies.fed.device.type == "cpu")
    tolerance = TOLERANCES[copies.fed.dtype]
    policy = Policy(copies.fed, attention=kernel, layout=layout, chunk_targets=VOCABULARY)
    with torch.set_grad_enabled(trains):
        plain = [_plain_logprobs(copies.reference, sequence) for sequence in sequences]
        if trains:
            torch.cat(plain).dot(_weights(plain)).backward()
        for packing in packings(sequences, layout):
            copies.fed.zero_grad()
            error = torch.cat([_feed(policy, micro, plain, trains) for micro in packing]).abs()
            worst = float(error.mean() if copies.fed.dtype == torch.bfloat16 else error.max())
            if not worst <= tolerance.logprob:
                return f"a log-probability is {worst:.2g} nats off"
            share = _gradient_error(copies) if trains else 0.0
            if not share <= tolerance.gradient:
                return f"the gradient is off by {share:.2g} of its norm"
    return None


def _feed(policy: Policy, micro: MicroBatch, plain: list[Tensor], trains: bool) -> Tensor:
    """(T,) differences of a micro-batch's log-probabilities. Accumulates the gradient."""
    logprobs = policy(to_tensors(micro.rows, policy.model.device))
    weights = _weights(plain).split([len(each) for each in plain])
    if trains:
        own = torch.cat([weights[slot] for slot in micro.members])
        logprobs.dot(own.to(logprobs)).backward()
    wanted = torch.cat([plain[slot] for slot in micro.members]).detach()
    return logprobs.detach().to(wanted) - wanted


def _weights(plain: list[Tensor]) -> Tensor:
    """(T,) weight of each target in the loss. The weights have both signs, and no two are equal."""
    total = torch.cat(plain).detach()
    return torch.linspace(-1, 1, len(total), dtype=total.dtype, device=total.device)


def _gradient_error(copies: Copies) -> float:
    """The norm of the gradients' difference, divided by the norm of the reference's gradient."""
    difference = norm = 0.0
    pairs = zip(copies.fed.parameters(), copies.reference.parameters(), strict=True)
    for fed, reference in pairs:
        wanted = torch.zeros_like(reference) if reference.grad is None else reference.grad
        found = torch.zeros_like(reference) if fed.grad is None else fed.grad.to(reference.dtype)
        difference += float((found - wanted).pow(2).sum())
        norm += float(wanted.pow(2).sum())
    return (difference / norm) ** 0.5


def _plain_logprobs(model: PreTrainedModel, sequence: Sequence) -> Tensor:
    """(targets,) log-probabilities of one sequence alone, by the model's own forward."""
    tokens = torch.from_numpy(sequence.tokens)[None].to(model.device)
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[0]
    target = tokens[0, sequence.prompt_length :, None]
    return logprobs[sequence.prompt_length - 1 : -1].gather(1, target)[:, 0]


@contextmanager
def _uncompiled(kernel: Kernel, device: torch.device) -> Iterator[None]:
    """Run FlexAttention uncompiled on a CPU: torch 2.13 cannot compile it in float64 there."""
    plain: Any = nullcontext()
    if kernel == "flex_attention" and device.type == "cpu":
        plain = torch.compiler.set_stance("force_eager")
    with plain:
        yield


def _layer_types(model: PreTrainedModel) -> str:
    """Names of the layer types: from the config, else the classes of the decoder's layers."""
    names = set(getattr(model.config, "layer_types", None) or [])
    if not names:
        modules = decoder_of(model).modules()
        stacks = [module for module in modules if isinstance(module, nn.ModuleList)]
        names = {type(layer).__name__ for layer in (stacks[0] if stacks else [])}
    return ", ".join(map(repr, sorted(names)))
