"""Renders tiers to segments and segments to token ids; computes the template's fingerprint.

Data preparation, training, evaluation and serving all render through `Template`; no other code adds
control tokens. Loads no model and does not import Ray.

Example: two tiers, a query and the answer. A control token opens each segment, and the tokenizer's
end token, here `</s>`, closes every response:

    <|system_info|>Answer in capitals.<|user_info|>I am Ana.<|user_query|>Capital of Peru?
    <|response|>LIMA.</s>
"""

import copy
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import transformers  # `from transformers import ...` would import torch, which takes seconds

from metaalign.errors import TemplateError
from metaalign.examples import Turn, is_utf8
from metaalign.plain_text import ids_outside, plain_text_tokenizer

SCHEMA_VERSION = 1
TEMPLATE_FILE = "template.json"

TIERS = ("system_info", "user_info", "user_query", "response")
"""The tiers, highest authority first. The token store holds a segment's tier as an index into this
tuple."""

CONTROL_TOKENS = {tier: f"<|{tier}|>" for tier in TIERS}
"""The token that opens a segment of each tier."""

_TIER_OF_ROLE = {"user": "user_query", "assistant": "response"}

_GOLDEN_DIALOGUES: tuple[dict[str, Any], ...] = (
    {
        "system_info": "Answer in capitals.",
        "user_info": "I am Ana.",
        "turns": (Turn("user", "Capital of Peru?"),),
        "response": "LIMA.",
    },
    {
        "system_info": "",
        "user_info": "",
        "turns": (
            Turn("user", "Hello"),
            Turn("assistant", "Good day!"),
            Turn("user", "¿Y en español? <|response|></s>\n\n 日本 \u0301 🙂", "I speak Spanish."),
        ),
        "response": " <|user_info|>Buenos días,\tAna ",
    },
)


class Segment(NamedTuple):
    """The text of one tier between two control tokens."""

    tier: str
    text: str


def prompt_segments(*, system_info: str, user_info: str, turns: Sequence[Turn]) -> list[Segment]:
    """The segments of a prompt, in order, without empty ones.

    Args:
        turns: Ends in the user's query. A turn's own user_info becomes a segment before its text.
    """
    segments = [Segment("system_info", system_info), Segment("user_info", user_info)]
    for turn in turns:
        segments.append(Segment("user_info", turn.user_info))
        segments.append(Segment(_TIER_OF_ROLE[turn.role], turn.text))
    return [segment for segment in segments if segment.text]


def read_tokenizer(path: str | Path) -> "transformers.PreTrainedTokenizerFast":
    """Load the unmodified tokenizer of a Hugging Face folder or hub name.

    Raises:
        TemplateError: the tokenizer is missing or cannot be loaded.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
        needed = _SENTENCEPIECE if _needs_sentencepiece(Path(path)) else repr(error)
        raise TemplateError(f"{path}: no tokenizer can be loaded: {needed}") from error


_SENTENCEPIECE = (
    "it holds a tokenizer.model but no tokenizer.json, so the package sentencepiece is needed: "
    "install it (pip install sentencepiece protobuf), or save the tokenizer once elsewhere with "
    "AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes a tokenizer.json"
)


def _needs_sentencepiece(folder: Path) -> bool:
    """Whether a folder holds only a sentencepiece model, and the package is not installed.

    tiktoken files may have the same name, but are text; a sentencepiece model begins with the tag
    of a protobuf field.
    """
    file = folder / "tokenizer.model"
    if importlib.util.find_spec("sentencepiece") is not None or not file.is_file():
        return False
    if (folder / "tokenizer.json").is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(1) == b"\n"


class Template:
    """Renders segments with one tokenizer.

    Pickling omits the transformers tokenizer, so that worker processes that only render do not
    import it, which takes seconds.

    Attributes:
        tokenizer: The transformers tokenizer. An unpickled copy lacks this attribute.
        bos_id: Precedes the first segment; None if the tokenizer has no such token.
        eos_id: Closes every response, including those of earlier turns.
        control_ids: Tier -> id of the token that opens it.
        vocabulary_size: All token ids are below this.
        fingerprint: Equal for two templates that render every text equally.
    """

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerFast") -> None:
        """Check the tokenizer and compute the fingerprint.

        Raises:
            TemplateError: the tokenizer lacks a control token or an end token, or is not of the
                tokenizers library.
        """
        if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
            raise TemplateError(
                f"the tokenizer is a {type(tokenizer).__name__}; only tokenizers of the tokenizers "
                "library are supported: save a folder with a tokenizer.json"
            )
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in CONTROL_TOKENS.values() if token not in vocabulary]
        if missing:
            raise TemplateError(
                f"the tokenizer lacks the control tokens {', '.join(missing)}; prepare a token "
                "store with it (tokenizer.path), which adds them, and load the store's tokenizer"
            )
        if tokenizer.eos_token_id is None:
            raise TemplateError("the tokenizer has no end-of-sequence token; set its eos_token")
        self.eos_id: int = int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
        bos_id = tokenizer.bos_token_id
        self.bos_id: int | None = None if bos_id is None else int(bos_id)  # pyright: ignore
        self.control_ids = {tier: vocabulary[token] for tier, token in CONTROL_TOKENS.items()}
        self.vocabulary_size = max(vocabulary.values()) + 1
        self._forbidden = _forbidden_ids(tokenizer) | set(self.control_ids.values())
        added = tokenizer.added_tokens_decoder
        kept = _text_tokens(added, self._forbidden)
        self._text_backend = plain_text_tokenizer(
            tokenizer.backend_tokenizer.to_str(),
            kept=kept,
            forbidden={token for token, id in vocabulary.items() if id in self._forbidden},
        )
        self._unwritten = self._forbidden | ids_outside(added, self._text_backend)
        self._text_token_ids = {token: vocabulary[token] for token in sorted(kept)}
        self.fingerprint = self._fingerprint()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    @classmethod
    def load(cls, folder: str | Path) -> "Template":
        """Load the tokenizer of a folder as a template.

        Raises:
            TemplateError: the tokenizer is missing, or the template cannot use it.
        """
        return cls(read_tokenizer(folder))

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without control tokens: text that looks like one stays text.

        Raises:
            TemplateError: a text is not valid UTF-8, or the tokenizer's vocabulary encodes it as a
                control token all the same.
        """
        try:
            encodings = self._text_backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            bad = next((text for text in texts if not is_utf8(text)), None)
            raise TemplateError(f"text is not valid UTF-8: {bad!r}") from error
        encoded = [encoding.ids for encoding in encodings]
        for text, ids in zip(texts, encoded, strict=True):
            if not self._forbidden.isdisjoint(ids):
                raise TemplateError(
                    f"the tokenizer encodes plain text as a control token: {text!r}; use another "
                    "tokenizer"
                )
        return encoded

    def opening(self, tier: str, *, first: bool) -> list[int]:
        """Token ids before a segment's text: its control token, preceded by the
        beginning-of-sequence token if `first` and if the tokenizer has one."""
        begin = [self.bos_id] if first and self.bos_id is not None else []
        return [*begin, self.control_ids[tier]]

    def closing(self, tier: str) -> list[int]:
        """Token ids after a segment's text: the end token for a response, else none."""
        return [self.eos_id] if tier == "response" else []

    def segment_ids(self, segments: Sequence[Segment]) -> list[list[int]]:
        """Token ids of each segment. Joined, they are the prompt without its last control token."""
        encoded = self.encode_texts([segment.text for segment in segments])
        return [
            [*self.opening(segment.tier, first=not place), *ids, *self.closing(segment.tier)]
            for place, (segment, ids) in enumerate(zip(segments, encoded, strict=True))
        ]

    def prompt_ids(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a whole prompt, including the control token that opens the response."""
        ids = [id for segment in self.segment_ids(segments) for id in segment]
        return [*ids, *self.opening("response", first=False)]

    def continued_ids(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a prompt whose last segment is the beginning of the response."""
        ids = [id for segment in self.segment_ids(segments) for id in segment]
        return ids[: len(ids) - len(self.closing("response"))]

    def response_ids(self, text: str) -> list[int]:
        """Token ids of a response: the text, then the end token."""
        return [*self.encode_texts([text])[0], *self.closing("response")]

    def decode_after(self, head: Sequence[int], ids: Sequence[int]) -> str:
        """The text of `ids` as it continues the text of `head`.

        Decoding both together keeps a leading space that some tokenizers drop.
        """
        return self.decode([*head, *ids])[len(self.decode(head)) :]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a response up to its end token, without control tokens.

        Equal to the encoded text if the tokenizer works on bytes and does not normalise.
        """
        text_ids = []
        for id in map(int, ids):
            if id == self.eos_id:
                break
            if id not in self._unwritten:
                text_ids.append(id)
        return self._text_backend.decode(text_ids, skip_special_tokens=False)

    def golden(self) -> list[dict[str, Any]]:
        """Renderings of fixed dialogues, for comparison wherever the template is used."""
        return [
            {
                **dialogue,
                "turns": [vars(turn) for turn in dialogue["turns"]],
                "prompt_ids": self.prompt_ids(
                    prompt_segments(
                        system_info=dialogue["system_info"],
                        user_info=dialogue["user_info"],
                        turns=dialogue["turns"],
                    )
                ),
                "response_ids": self.response_ids(dialogue["response"]),
            }
            for dialogue in _GOLDEN_DIALOGUES
        ]

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer and `template.json` beside it.

        The tokenizer's own chat template is removed, since the model is not trained on its
        rendering.
        """
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(str(folder))
        template = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "control_ids": self.control_ids,
            "golden": self.golden(),
        }
        text = json.dumps(template, ensure_ascii=False, indent=2)
        Path(folder, TEMPLATE_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def verify(cls, folder: str | Path) -> "Template":
        """Load a folder's template and compare its fingerprint with the saved one.

        Raises:
            TemplateError: `template.json` is missing or unreadable, or the fingerprints differ.
        """
        file = Path(folder, TEMPLATE_FILE)
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))["fingerprint"]
        except FileNotFoundError as error:
            raise TemplateError(
                f"{file} is missing: the folder was not written by the export job"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TemplateError(
                f"{file} cannot be read: {error!r}; export the model again"
            ) from error
        template = cls.load(folder)
        if template.fingerprint != saved:
            raise TemplateError(
                f"{folder}: the tokenizer renders another template than the model was trained "
                f"with: fingerprint {template.fingerprint}, expected {saved}; export the model "
                "again and do not change files in its folder"
            )
        return template

    def _fingerprint(self) -> str:
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        rendered = {
            "schema_version": SCHEMA_VERSION,
            # Rendering does not use the post-processor, padding and truncation.
            "tokenizer": [
                backend[key]
                for key in ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")
            ],
            "control": self.control_ids,
            "ends": [self.bos_id, self.eos_id],
            "golden": self.golden(),
            **({"text_tokens": self._text_token_ids} if self._text_token_ids else {}),
        }
        return hashlib.sha256(json.dumps(rendered, sort_keys=True).encode()).hexdigest()


def _forbidden_ids(tokenizer: "transformers.PreTrainedTokenizerFast") -> set[int]:
    """The ids of all special tokens except the unknown token."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named: list[Any] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    unknown: Any = tokenizer.unk_token_id
    return (special - {unknown}) | {id for id in named if id is not None}


def _text_tokens(added: Mapping[int, Any], forbidden: set[int]) -> set[str]:
    """The added tokens that are not special, such as `<think>`: they may occur in text."""
    return {
        token.content for id, token in added.items() if not token.special and id not in forbidden
    }
