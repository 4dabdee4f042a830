"""Generates with transformers in this process: token ids in, token ids out, in static batches.

Handles no text, no tiers and no HTTP. Dimensions: V = vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from metaalign.errors import ModelError
from metaalign.folders import weights_fingerprint
from metaalign.template import Template
from metaalign.train.model.context import STATED_AS, stated_context


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of one prompt. The sample depends on the seed, not on the batch."""

    max_tokens: int
    temperature: float = 0.0
    """0 is greedy decoding."""

    top_p: float = 1.0
    """Sample from the smallest set of likeliest tokens with at least this total probability."""

    seed: int | None = None
    """None takes a new random seed for each request. Ignored at temperature 0."""


class Answer(NamedTuple):
    """Tokens of an answer, without the token that ended it."""

    tokens: list[int]
    finish_reason: Literal["stop", "length"]


Listener = Callable[[int, int | Answer], bool]
"""Called with (number of the prompt, token) for each new token, then with (number, Answer) once the
answer is complete. Returns whether to continue this answer."""


class EmbeddedEngine:
    """A causal language model in this process, with its template.

    Attributes:
        template: The template stored in the model's folder.
        context: Most tokens of a prompt and its answer together.
        fingerprint: Equal for folders with the same weights and template.
    """

    def __init__(self, folder: str | Path, *, device: str = "auto", batch_size: int = 64) -> None:
        """Load the model.

        Args:
            device: "cpu", "cuda" or another torch device; "auto" takes CUDA if it is available.
            batch_size: Most prompts decoded together.

        Raises:
            ModelError: the folder holds no usable model.
        """
        folder = check_folder(folder)
        self.template = Template.load(folder)
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        self.batch_size = batch_size
        self._model = _load(folder, self.device)
        self.fingerprint = f"{weights_fingerprint(folder)[:16]}-{self.template.fingerprint[:16]}"
        self.context = context_in(self._model.config, folder)
        vocabulary = self._model.config.get_text_config().vocab_size
        if vocabulary < self.template.vocabulary_size:
            raise ModelError(
                f"{folder}: the model's vocabulary has {vocabulary} tokens, fewer than its "
                f"tokenizer's {self.template.vocabulary_size}; export the model again"
            )
        # Only the template opens segments, so a control token from the model ends its answer.
        self._ends = frozenset({self.template.eos_id, *self.template.control_ids.values()})
        # Without this, the checkpoint's own defaults (penalties, temperature) would apply.
        self._model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=sorted(self._ends), pad_token_id=self.template.eos_id
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        listener: Listener | None = None,
    ) -> list[Answer]:
        """Answer every prompt, in batches of prompts of similar length.

        An answer ends at its max_tokens or at the end of the context, whichever comes first.

        Args:
            sampling: One for all prompts, or one for each.
            listener: Receives the tokens while a batch is decoded.

        Raises:
            ModelError: a prompt leaves no room for an answer in the context.
        """
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        limits = [self._limit(prompt, s) for prompt, s in zip(prompts, samplings, strict=True)]
        answers: list[Answer] = [Answer([], "stop")] * len(prompts)
        for numbers in self._batches([len(prompt) for prompt in prompts], limits):
            batch = _Batch(numbers, limits, listener, self._ends)
            draw = _Draw([samplings[i] for i in batch.numbers])
            self._decode([prompts[i] for i in batch.numbers], batch, draw)
            for row, number in enumerate(batch.numbers):
                answers[number] = batch.answer(row)
        return answers

    def _batches(self, lengths: Sequence[int], limits: Sequence[int]) -> list[list[int]]:
        """The batches, as lists of prompt numbers, the longest prompts first.

        All rows of a batch are decoded until the last one ends, so the longest prompt and the
        longest answer of a batch must fit the context together: a learned position table ends
        there.
        """
        batches: list[list[int]] = []
        longest = answer = 0
        for number in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
            answer = max(answer, limits[number])
            full = not batches or len(batches[-1]) == self.batch_size
            if full or longest + answer > self.context:
                batches.append([])
                longest, answer = lengths[number], limits[number]
            batches[-1].append(number)
        return batches

    def _limit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        room = self.context - len(prompt)
        if room < 1 or not prompt:
            raise ModelError(
                f"a prompt of {len(prompt)} tokens cannot be answered in a context of "
                f"{self.context}; it must have between 1 and {self.context - 1} tokens"
            )
        return min(sampling.max_tokens, room)

    def _decode(self, prompts: Sequence[Sequence[int]], batch: "_Batch", draw: "_Draw") -> None:
        """Decode the batch. Prompts are padded on the left, so that all rows end at one
        position."""
        length = max(map(len, prompts))
        tokens = torch.full((len(prompts), length), self.template.eos_id)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        with torch.inference_mode():
            self._model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=tokens.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=max(batch.limits),
                logits_processor=LogitsProcessorList([draw] if draw.rows else []),
                stopping_criteria=StoppingCriteriaList([_Finished(batch)]),
                streamer=batch,
            )


class _Batch(BaseStreamer):
    """The answers of one batch so far. transformers' generate() calls `put` after every step."""

    def __init__(
        self,
        numbers: list[int],
        limits: Sequence[int],
        listener: Listener | None,
        ends: frozenset[int],
    ) -> None:
        self.numbers = numbers
        self.limits = [limits[number] for number in numbers]
        self.open = [True] * len(numbers)
        self._tokens: list[list[int]] = [[] for _ in numbers]
        self._stopped = [False] * len(numbers)
        self._listen: Listener = listener or (lambda *_: True)
        self._ends = ends
        self._prompt_is_put = False

    def put(self, value: Tensor) -> None:
        """Take one token per row. The first call passes the prompts, which are skipped."""
        if not self._prompt_is_put:
            self._prompt_is_put = True
            return
        for row, token in enumerate(value.tolist()):
            if self.open[row]:
                self._take(row, token)

    def _take(self, row: int, token: int) -> None:
        self._stopped[row] = token in self._ends
        if self._stopped[row]:
            self.open[row] = False
        else:
            self._tokens[row].append(token)
            wanted = self._listen(self.numbers[row], token)
            self.open[row] = wanted and len(self._tokens[row]) < self.limits[row]
        if not self.open[row]:
            self._listen(self.numbers[row], self.answer(row))

    def end(self) -> None:
        """Required by BaseStreamer; there is nothing to flush."""

    def answer(self, row: int) -> Answer:
        """The tokens of a row so far, and why it ended."""
        return Answer(self._tokens[row], "stop" if self._stopped[row] else "length")


class _Finished(StoppingCriteria):
    """Stops a row that ended, reached its max_tokens or was cancelled by the listener."""

    def __init__(self, batch: _Batch) -> None:
        self._batch = batch

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        return torch.tensor([not row for row in self._batch.open], device=input_ids.device)


class _Draw(LogitsProcessor):
    """Adds noise to the logits of rows with a temperature above 0, so that greedy decoding samples.

    Gumbel-max: argmax(log p + g) with standard Gumbel noise g is a sample from p. Each row has its
    own temperature, top_p and generator, so its sample does not depend on the other rows.
    """

    def __init__(self, samplings: Sequence[Sampling]) -> None:
        self.rows: list[tuple[int, Sampling, torch.Generator]] = []
        for row, sampling in enumerate(samplings):
            if sampling.temperature > 0:
                generator = torch.Generator()
                if sampling.seed is None:
                    generator.seed()
                else:
                    generator.manual_seed(sampling.seed)
                self.rows.append((row, sampling, generator))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        for row, sampling, generator in self.rows:
            logits = (scores[row] - scores[row].max()) / sampling.temperature
            logits = keep_top_p(logits, sampling.top_p)
            # Exponential samples rather than -log(uniform), since a uniform sample may be 0.
            noise = torch.empty(logits.shape).exponential_(generator=generator)
            scores[row] = logits - noise.log().to(logits.device)
        return scores


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens with a total probability of at least `top_p`.

    Args:
        logits: (V,).

    Returns:
        (V,) the logits, minus infinity for all other tokens. The likeliest token is always kept.
    """
    ordered, indices = logits.softmax(-1).sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    return logits.index_fill(-1, indices[(before >= top_p) & (before > 0)], float("-inf"))


def check_folder(folder: str | Path) -> Path:
    """Return the folder if it has a model's config and weights. Does not load them.

    Raises:
        ModelError: names the folder, what is missing and what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: the model folder does not exist; run the export job first")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: has no config.json, so it is not a Hugging Face model folder; give the "
            "folder that the export job wrote"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: has no *.safetensors weights; run the export job again")
    return folder


def _load(folder: Path, device: torch.device) -> PreTrainedModel:
    dtype = "auto" if device.type == "cuda" else torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: the model cannot be loaded: {error}") from error
    return model.to(device).eval()  # pyright: ignore[reportArgumentType]


def context_in(config: PretrainedConfig, folder: Path) -> int:
    """Most tokens of a sequence, as stated in the model's config.

    Raises:
        ModelError: the config states none.
    """
    context = stated_context(config)
    if context is None:
        raise ModelError(
            f"{folder}: config.json does not state how many tokens the model accepts; add "
            f"{STATED_AS!r} to it, as training with model.context does"
        )
    return context
