"""transformers in process: token ids in, token ids out, in static batches of prompts.

Knows no text, no tiers and no HTTP.

Dimensions: B = prompts of a batch, L = length of its longest prompt, V = vocabulary.
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
    """How one prompt is answered. The draw depends on the seed alone, not on the batch."""

    max_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""

    top_p: float = 1.0
    """Draw from the fewest tokens that hold this much probability."""

    seed: int | None = None
    """None draws anew each time. Not read at temperature 0."""


class Answer(NamedTuple):
    """Tokens of an answer, without the token that ended it."""

    tokens: list[int]
    finish_reason: Literal["stop", "length"]


Listener = Callable[[int, int | Answer], bool]
"""Told the number of a prompt and each token of its answer as soon as it is known, then the whole
Answer. Returns whether the answer should go on."""


class EmbeddedEngine:
    """A causal language model in this process, with its template.

    Attributes:
        template: The renderer that lies in the model's folder.
        context: Most tokens of a prompt and its answer together.
        fingerprint: Equal for folders of the same weights and template.
    """

    def __init__(self, folder: str | Path, *, device: str = "auto", batch_size: int = 64) -> None:
        """Raises ModelError where the folder holds no usable model."""
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
                f"{folder}: the model has a vocabulary of {vocabulary}, its tokenizer one of "
                f"{self.template.vocabulary_size}; export the model again"
            )
        # Only the renderer opens a segment: a model that writes a control token is done.
        self._ends = frozenset({self.template.eos_id, *self.template.control_ids.values()})
        # A checkpoint's own defaults (penalties, temperatures) would answer behind our back.
        self._model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=sorted(self._ends), pad_token_id=self.template.eos_id
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        listener: Listener | None = None,
    ) -> list[Answer]:
        """Answer every prompt, in batches of prompts of about the same length.

        An answer ends before the context does, whatever its max_tokens.

        Args:
            sampling: One for all prompts, or one for each.
            listener: Hears of tokens while the batch is decoded.

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
        """Prompts by number, the longest first.

        The rows of a batch run on until its last one ends, so the longest prompt and the longest
        answer must fit the context together: a learned position table ends there.
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
                f"{self.context}; it must have between 1 and {self.context - 1}"
            )
        return min(sampling.max_tokens, room)

    def _decode(self, prompts: Sequence[Sequence[int]], batch: "_Batch", draw: "_Draw") -> None:
        """Run the batch to its end. Left padding: every row's next token stands at one place."""
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
    """What is known of the answers of one batch; generate() puts each step's tokens into it."""

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
        """Nothing is held back."""

    def answer(self, row: int) -> Answer:
        return Answer(self._tokens[row], "stop" if self._stopped[row] else "length")


class _Finished(StoppingCriteria):
    """Ends rows at their own max_tokens, or when nobody waits for them any more."""

    def __init__(self, batch: _Batch) -> None:
        self._batch = batch

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        return torch.tensor([not row for row in self._batch.open], device=input_ids.device)


class _Draw(LogitsProcessor):
    """Turns generate()'s likeliest token into a draw, for the rows that ask for one.

    Gumbel-max: argmax(log p + g) with standard Gumbel noise g is a draw from p. Each row has its
    own temperature, top_p and generator, so its draw does not depend on its neighbours.
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
            # Exponential draws, not -log of uniform ones, which may be 0.
            noise = torch.empty(logits.shape).exponential_(generator=generator)
            scores[row] = logits - noise.log().to(logits.device)
        return scores


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set all but the likeliest tokens that together hold `top_p` to minus infinity.

    Args:
        logits: (V,). The likeliest token always stays.
    """
    ordered, indices = logits.softmax(-1).sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    return logits.index_fill(-1, indices[(before >= top_p) & (before > 0)], float("-inf"))


def check_folder(folder: str | Path) -> Path:
    """The folder, where it looks like one that holds a model.

    Raises:
        ModelError: names the folder, what it lacks, and the remedy.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such model folder; run the export job first")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: has no config.json, so it is no Hugging Face model folder; give the folder "
            "that the export job wrote"
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
    """Tokens of a sequence at most, as the config of a model's folder states them.

    Raises:
        ModelError: it states none.
    """
    context = stated_context(config)
    if context is None:
        raise ModelError(
            f"{folder}: its config.json does not say how many tokens the model takes; add "
            f"{STATED_AS!r} to it, as training with model.context does"
        )
    return context
