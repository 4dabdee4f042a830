"""Shows tokens as coloured text: one colour for each tier, control tokens by their names.

Imports neither examples nor losses.
"""

from collections.abc import Iterable

from rich.text import Text

from metaalign.template import Template

TIER_STYLES = {
    "system_info": "red",
    "user_info": "magenta",
    "user_query": "blue",
    "response": "green",
}

_SHOWN_CHARACTERS = 700


def tokens_as_text(template: Template, ids: Iterable[int], tier: str, *, style: str = "") -> Text:
    """Text of tokens in the colour of a tier. Special tokens are shown by name, in white on it.

    A long text is shortened in the middle.

    Args:
        style: A style of rich that is added to the colour.
    """
    text, run = Text(), list[int]()
    special = {template.bos_id, template.eos_id, *template.control_ids.values()}
    for id in [*map(int, ids), None]:
        if id is not None and id not in special:
            run.append(id)
            continue
        text.append(_shortened(template.decode(run)), style=f"{TIER_STYLES[tier]} {style}")
        run = []
        if id is not None:
            name = str(template.tokenizer.convert_ids_to_tokens(id))
            text.append(name, style=f"white on {TIER_STYLES[tier]} {style}")
    return text


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
