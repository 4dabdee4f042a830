"""Whether a tokenizer gives texts back: what it loses can be neither learned nor answered.

Knows no file and no example.
"""

import unicodedata
from collections.abc import Iterable, Mapping

from metaalign.template import Template

_EXAMPLES, _SHOWN_CHARACTERS = 3, 60


class RoundTrip:
    """Counts texts that do not come back, as often as they stand.

    Attributes:
        checked: How many texts were checked.
        lost: How many of those decode to another text.
        examples: The first of these, and what came back.
    """

    def __init__(self, template: Template) -> None:
        self.checked = self.lost = 0
        self.examples: list[dict[str, str]] = []
        self._template = template

    def take(self, texts: Iterable[str], ids: Mapping[str, bytes]) -> None:
        """Check the next texts.

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
    """Whether nothing of a text is lost in what a tokenizer makes of it.

    Canonically equal characters are the same, such as é in one code point or in two, and so are
    texts with and without the one space that sentencepiece adds or takes away at the beginning.
    """
    if text == back:
        return True
    text, back = (unicodedata.normalize("NFC", each).removeprefix(" ") for each in (text, back))
    return text == back


def _around(text: str, other: str) -> str:
    """The text where it begins to differ from the other."""
    pairs = zip(text, other, strict=False)
    first = next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other))
    )
    start = max(0, first - _SHOWN_CHARACTERS // 2)
    return text[start : start + _SHOWN_CHARACTERS]
