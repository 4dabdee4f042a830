"""Checks that a tokenizer decodes to the text it encoded. What it loses cannot be learned.

Reads neither files nor examples.
"""

import unicodedata
from collections.abc import Iterable, Mapping

from metaalign.template import Template

_EXAMPLES, _SHOWN_CHARACTERS = 3, 60


class RoundTrip:
    """Counts texts that a tokenizer does not decode to themselves.

    Attributes:
        checked: Number of texts checked; a repeated text counts each time.
        lost: Number of those that decode to another text.
        examples: The first of the lost texts, each with the decoded text.
    """

    def __init__(self, template: Template) -> None:
        self.checked = self.lost = 0
        self.examples: list[dict[str, str]] = []
        self._template = template

    def take(self, texts: Iterable[str], ids: Mapping[str, bytes]) -> None:
        """Check more texts.

        Args:
            ids: Text -> its token ids, as 32-bit integers.
        """
        for text in texts:
            self._check(text, ids[text])

    def _check(self, text: str, ids: bytes) -> None:
        back = self._template.decode(memoryview(ids).cast("i"))
        self.checked += 1
        if not comes_back(text, back):
            self.lost += 1
            if len(self.examples) < _EXAMPLES:
                shown = (_around(text, back), _around(back, text))
                self.examples.append(dict(zip(("text", "back"), shown, strict=True)))


def comes_back(text: str, back: str) -> bool:
    """Whether a tokenizer's decoded text `back` equals `text`, up to two allowed differences.

    Canonically equivalent characters count as equal, such as é in one code point or two. So does
    the one space that sentencepiece adds or removes at the beginning.
    """
    if text == back:
        return True
    text, back = (unicodedata.normalize("NFC", each).removeprefix(" ") for each in (text, back))
    return text == back


def _around(text: str, other: str) -> str:
    """An excerpt of the text around the first difference from the other."""
    pairs = zip(text, other, strict=False)
    first = next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other))
    )
    start = max(0, first - _SHOWN_CHARACTERS // 2)
    return text[start : start + _SHOWN_CHARACTERS]
