"""The one renderer: tiers -> segments -> token ids. The fingerprint that travels with a model.

Data preparation, training, evaluation and serving all render through `Template`; nobody else adds
a control token. Knows no file format, no model and no Ray.

Two tiers, a query, and the answer, each segment opened by its control token (`</s>` stands for the
tokenizer's own end token, which closes every response):

    <|system_info|>Answer in capitals.<|user_info|>I am Ana.<|user_query|>Capital of Peru?
    <|response|>LIMA.</s>
"""

import copy
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import transformers  # its classes are named in full: importing one imports torch, for seconds

from metaalign.errors import TemplateError
from metaalign.examples import Turn, is_utf8
from metaalign.plain_text import plain_text_tokenizer

SCHEMA_VERSION = 1
TEMPLATE_FILE = "template.json"

TIERS = ("system_info", "user_info", "user_query", "response")
"""The tiers, in the order of their authority. A segment's tier is stored as its place in here."""

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
    """What one tier says: the text between two control tokens."""

    tier: str
    text: str


def prompt_segments(*, system_info: str, user_info: str, turns: Sequence[Turn]) -> list[Segment]:
    """The segments of a prompt, in order. An empty tier is left out.

    Args:
        turns: Ends in the user's query. A turn's own user_info becomes a segment before its query.
    """
    segments = [Segment("system_info", system_info), Segment("user_info", user_info)]
    for turn in turns:
        segments.append(Segment("user_info", turn.user_info))
        segments.append(Segment(_TIER_OF_ROLE[turn.role], turn.text))
    return [segment for segment in segments if segment.text]


def read_tokenizer(path: str | Path) -> "transformers.PreTrainedTokenizerFast":
    """The tokenizer of a Hugging Face folder or hub name, as it stands there.

    Raises:
        TemplateError: there is none.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
        needed = _SENTENCEPIECE if _needs_sentencepiece(Path(path)) else repr(error)
        raise TemplateError(f"{path}: no tokenizer can be loaded: {needed}") from error


_SENTENCEPIECE = (
    "it holds a tokenizer.model and no tokenizer.json, which needs the package sentencepiece: "
    "install it (pip install sentencepiece protobuf), or save the tokenizer once elsewhere with "
    "AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes a tokenizer.json"
)


def _needs_sentencepiece(folder: Path) -> bool:
    """Whether a folder holds a sentencepiece model alone, and the package is not there. Tiktoken's
    files of that name are text; a sentencepiece model begins with the tag of a protobuf field."""
    file = folder / "tokenizer.model"
    if importlib.util.find_spec("sentencepiece") is not None or not file.is_file():
        return False
    if (folder / "tokenizer.json").is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(1) == b"\n"


class Template:
    """Renders segments with one tokenizer.

    Pickled without the transformers tokenizer, so that a worker process that only renders need
    not import it, which takes seconds.

    Attributes:
        tokenizer: The transformers tokenizer; not in a copy that was pickled.
        bos_id: Stands once, before the first segment, where the tokenizer has one.
        eos_id: Closes every response, those of earlier turns too.
        control_ids: Tier -> id of the token that opens it.
        vocabulary_size: Token ids are below this.
        fingerprint: Equal for two templates that render everything alike.
    """

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerFast") -> None:
        """Raises: TemplateError where a control token or the end token is missing."""
        if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
            raise TemplateError(
                f"the tokenizer is a {type(tokenizer).__name__}; only those of the tokenizers "
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
        kept = _text_tokens(tokenizer, self._forbidden)
        self._text_backend = plain_text_tokenizer(
            tokenizer.backend_tokenizer.to_str(),
            kept=kept,
            forbidden={token for token, id in vocabulary.items() if id in self._forbidden},
        )
        self._text_token_ids = {token: vocabulary[token] for token in sorted(kept)}
        self.fingerprint = self._fingerprint()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    @classmethod
    def load(cls, folder: str | Path) -> "Template":
        """The template of a folder that holds a tokenizer.

        Raises:
            TemplateError: there is none, or it cannot carry the template.
        """
        return cls(read_tokenizer(folder))

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Plain token ids of each text. No text can make a control token.

        Raises:
            TemplateError: a text is not valid UTF-8, or the tokenizer's own vocabulary turned it
                into a control token after all.
        """
        try:
            encodings = self._text_backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            bad = next((text for text in texts if not is_utf8(text)), None)
            raise TemplateError(f"text is not valid UTF-8: {bad!r}") from error
        encoded = [encoding.ids for encoding in encodings]
        for text, ids in zip(texts, encoded, strict=True):
            if not self._forbidden.isdisjoint(ids):
                raise TemplateError(f"plain text became a control token: {text!r}")
        return encoded

    def opening(self, tier: str, *, first: bool) -> list[int]:
        """What stands before a segment's text: the control token, and before it, where the segment
        is the prompt's first, the token that begins a sequence."""
        begin = [self.bos_id] if first and self.bos_id is not None else []
        return [*begin, self.control_ids[tier]]

    def closing(self, tier: str) -> list[int]:
        """What stands after a segment's text: after a response the end token, else nothing."""
        return [self.eos_id] if tier == "response" else []

    def segment_ids(self, segments: Sequence[Segment]) -> list[list[int]]:
        """Token ids of each segment; their sum is a prompt less its last control token."""
        encoded = self.encode_texts([segment.text for segment in segments])
        return [
            [*self.opening(segment.tier, first=not place), *ids, *self.closing(segment.tier)]
            for place, (segment, ids) in enumerate(zip(segments, encoded, strict=True))
        ]

    def prompt_ids(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a whole prompt, up to the control token that opens the response."""
        ids = [id for segment in self.segment_ids(segments) for id in segment]
        return [*ids, *self.opening("response", first=False)]

    def continued_ids(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a prompt and of the beginning of its response, the last segment."""
        ids = [id for segment in self.segment_ids(segments) for id in segment]
        return ids[: len(ids) - len(self.closing("response"))]

    def response_ids(self, text: str) -> list[int]:
        """Token ids that the model should answer: the text, then the end token."""
        return [*self.encode_texts([text])[0], *self.closing("response")]

    def decode_after(self, head: Sequence[int], ids: Sequence[int]) -> str:
        """The text of a response that goes on from its head: as it stands after the head's text,
        where a tokenizer drops the space that a response begins with."""
        return self.decode([*head, *ids])[len(self.decode(head)) :]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a response: cut at the end token, control tokens dropped.

        Exactly the encoded text for a byte-level tokenizer that does not normalise.
        """
        text_ids = []
        for id in map(int, ids):
            if id == self.eos_id:
                break
            if id not in self._forbidden:
                text_ids.append(id)
        return self._text_backend.decode(text_ids, skip_special_tokens=False)

    def golden(self) -> list[dict[str, Any]]:
        """A few renderings that must come out alike wherever the template is used."""
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

        The tokenizer's own chat template is left out: nothing is trained on what it renders, and
        whoever applied it would ask the model in tokens that it never saw.
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
        """Load a folder's template and hold it against the one that it was saved with.

        Raises:
            TemplateError: `template.json` is missing or unreadable, or names another fingerprint.
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
                "again and serve that folder unchanged"
            )
        return template

    def _fingerprint(self) -> str:
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        rendered = {
            "schema_version": SCHEMA_VERSION,
            # The post-processor, padding and truncation are never used by the renderer.
            "tokenizer": [
                backend[key]
                for key in ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")
            ],
            "control": self.control_ids,
            "ends": [self.bos_id, self.eos_id],
            "golden": self.golden(),
        }
        if self._text_token_ids:
            rendered["text_tokens"] = self._text_token_ids
        return hashlib.sha256(json.dumps(rendered, sort_keys=True).encode()).hexdigest()


def _forbidden_ids(tokenizer: "transformers.PreTrainedTokenizerFast") -> set[int]:
    """Every special token's id, less the one that stands for unknown characters."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named: list[Any] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    unknown: Any = tokenizer.unk_token_id
    return (special - {unknown}) | {id for id in named if id is not None}


def _text_tokens(
    tokenizer: "transformers.PreTrainedTokenizerFast", forbidden: set[int]
) -> set[str]:
    """The added tokens that are plain text of the model's language, such as `<think>`."""
    return {
        token.content
        for id, token in tokenizer.added_tokens_decoder.items()
        if not token.special and id not in forbidden
    }
