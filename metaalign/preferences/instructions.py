"""Verifiable instructions: code can rewrite any answer to obey one, and check whether it does.

Names as in IFEval, https://arxiv.org/abs/2311.07911; `plain:` ones ask for the absence of a form.
The opposite of an instruction is the declared one, else the same with another parameter.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from metaalign.preferences import rewriting
from metaalign.preferences.rewriting import Obey

Check = Callable[[str, str], bool]
"""Takes an answer and the parameter; returns whether the answer obeys."""

PHRASES = (
    "Is there anything else I can help with?",
    "That is all for today.",
    "Thank you for asking.",
    "I hope this helps.",
    "Any other questions?",
    "Let me know how it goes.",
    "Take care.",
    "Stay curious.",
)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        system, user: Phrasings of the operator and of the user; `{}` stands for the parameter. The
            last one is used only in the held-out split, as is the last of three or more parameters.
        opposite: Name of the instruction that opposes this one.
    """

    name: str
    system: tuple[str, ...]
    user: tuple[str, ...]
    obey: Obey
    check: Check
    parameters: tuple[str, ...] = ("",)
    opposite: str | None = None


INSTRUCTIONS: dict[str, Instruction] = {
    each.name: each
    for each in (
        Instruction(
            "change_case:english_capital",
            (
                "Your entire response must be in capital letters.",
                "Write all answers in capitals only.",
                "Always reply in uppercase.",
                "Small letters are not allowed.",
            ),
            (
                "My screen shows capitals best, so please write in capital letters.",
                "I can only read uppercase text.",
                "Please answer in capitals.",
                "I would like every letter to be a capital.",
            ),
            lambda text, _: rewriting.uncased(text, str.upper),
            lambda text, _: text == text.upper(),
            opposite="change_case:english_lowercase",
        ),
        Instruction(
            "change_case:english_lowercase",
            (
                "Your entire response must be in lowercase letters.",
                "Write all answers in small letters only.",
                "Always reply in lowercase.",
                "Capital letters are not allowed.",
            ),
            (
                "Capitals feel like shouting to me, so please write in lowercase.",
                "I can only read lowercase text.",
                "Please answer in small letters.",
                "I would like no letter to be a capital.",
            ),
            lambda text, _: rewriting.uncased(text, str.lower),
            lambda text, _: text == text.lower(),
            opposite="change_case:english_capital",
        ),
        Instruction(
            "punctuation:no_comma",
            (
                "Refrain from the use of any commas.",
                "Do not use commas in your response.",
                "Commas are banned here.",
                "Write without a single comma.",
            ),
            (
                "I stumble over commas, so please leave them out.",
                "Please do not use any commas.",
                "I like text without commas.",
                "Spare me the commas.",
            ),
            lambda text, _: text.replace(",", "") if "," in text else None,
            lambda text, _: "," not in text,
            opposite="plain:commas",
        ),
        Instruction(
            "plain:commas",
            (
                "Punctuate in full, commas included.",
                "Set commas where they belong.",
                "Never leave out a comma.",
                "Commas are required here.",
            ),
            (
                "I need commas to follow a sentence.",
                "Please punctuate with commas.",
                "I like well placed commas.",
                "Do not spare commas with me.",
            ),
            rewriting.unchanged_if(lambda text: "," in text),
            lambda text, _: "," in text,
            opposite="punctuation:no_comma",
        ),
        Instruction(
            "startend:quotation",
            (
                "Wrap your entire response in double quotation marks.",
                "Put every answer between double quotes.",
                "Open and close with a double quotation mark.",
                "Answers stand in quotation marks.",
            ),
            (
                "I paste answers as quotes, so wrap yours in double quotation marks.",
                "Please put the whole answer in double quotes.",
                "I want the answer between quotation marks.",
                "Quote your answer for me, all of it.",
            ),
            lambda text, _: None if '"' in text else f'"{text}"',
            lambda text, _: len(text) > 1 and text[0] == text[-1] == '"',
            opposite="plain:unquoted",
        ),
        Instruction(
            "plain:unquoted",
            (
                "Never wrap a response in quotation marks.",
                "Answers stand without double quotes around them.",
                "Do not open with a quotation mark.",
                "No quotes around the answer.",
            ),
            (
                "I dislike answers in quotation marks.",
                "Please leave out double quotes around the answer.",
                "I want the answer without quotes around it.",
                "Do not quote yourself, please.",
            ),
            rewriting.unchanged_if(lambda text: '"' not in text),
            lambda text, _: not text.startswith('"'),
            opposite="startend:quotation",
        ),
        Instruction(
            "detectable_format:title",
            (
                "Every answer has a title, wrapped in double angular brackets.",
                "Begin with a title such as <<my title>>.",
                "Put a title in << and >> first.",
                "No answer without a <<title>>.",
            ),
            (
                "I file answers by title, so begin with one in << and >>.",
                "Please give the answer a <<title>>.",
                "I want a title in double angular brackets.",
                "Head your answer with a <<title>> for me.",
            ),
            rewriting.titled,
            lambda text, _: re.match(r"<<[^\n]+>>", text) is not None,
            opposite="plain:untitled",
        ),
        Instruction(
            "plain:untitled",
            (
                "Answers have no title.",
                "Begin with the answer itself and not with a title.",
                "Never use double angular brackets.",
                "Titles are not allowed.",
            ),
            (
                "I have no use for a title.",
                "Please start right away, without a title.",
                "I want no title in angular brackets.",
                "Skip any <<title>> for me.",
            ),
            rewriting.unchanged_if(lambda text: "<<" not in text),
            lambda text, _: "<<" not in text,
            opposite="detectable_format:title",
        ),
        Instruction(
            "detectable_format:json_format",
            (
                'The entire output is JSON with the one key "{}".',
                'Wrap your response in JSON, key "{}".',
                'Output JSON only; the key is "{}".',
                'Nothing but a JSON object with "{}" may be written.',
            ),
            (
                'A program of mine reads the key "{}" of your JSON.',
                'Please answer as JSON with the key "{}".',
                'I need JSON, key "{}".',
                'Hand me a JSON object with "{}".',
            ),
            rewriting.as_json,
            rewriting.is_json,
            parameters=("answer", "response", "text", "reply", "output", "content"),
        ),
        Instruction(
            "startend:end_checker",
            (
                "Finish your response with this exact phrase: {}",
                "The last words of every answer are: {}",
                "Always end with: {}",
                "Close each reply by saying: {}",
            ),
            (
                "I like answers that end with: {}",
                "Please finish with this exact phrase: {}",
                "For me the last words must be: {}",
                "Let your closing words be: {}",
            ),
            lambda text, phrase: f"{text} {phrase}",
            lambda text, phrase: text.endswith(phrase),
            parameters=PHRASES,
        ),
        Instruction(
            "detectable_format:number_bullet_lists",
            (
                "Your answer must contain exactly {} bullet points, each begun with * .",
                "Write exactly {} bullets.",
                "Use a markdown list of {} points.",
                "Give every answer as {} bullet points.",
            ),
            (
                "I skim, so give me exactly {} bullet points.",
                "Please write {} bullets.",
                "I want a list of {} points.",
                "Break it into {} bullets for me.",
            ),
            rewriting.bulleted,
            lambda text, count: len(rewriting.bullets(text)) == int(count),
            parameters=("2", "3", "4", "5"),
        ),
        Instruction(
            "length_constraints:number_paragraphs",
            (
                "There should be exactly {} paragraphs, separated with ***",
                "Write {} paragraphs with *** between them.",
                "Split answers into {} sections by ***",
                "Every answer has {} parts divided by ***",
            ),
            (
                "I read in pieces, so write {} paragraphs separated with ***",
                "Please give me {} paragraphs with *** between them.",
                "I want {} sections divided by ***",
                "Cut it into {} parts by *** for me.",
            ),
            rewriting.in_sections,
            lambda text, count: text.count("***") == int(count) - 1,
            parameters=("2", "3", "4"),
        ),
        Instruction(
            "length_constraints:number_sentences",
            (
                "Your response has at most {} sentences.",
                "Never write more than {} sentences.",
                "The limit is {} sentences.",
                "Stop after {} sentences at the latest.",
            ),
            (
                "I am in a hurry: at most {} sentences.",
                "Please stay within {} sentences.",
                "I read no more than {} sentences.",
                "Keep it to {} sentences for me.",
            ),
            rewriting.shortened,
            lambda text, most: len(rewriting.sentences(text)) <= int(most),
            parameters=("2", "3", "4"),
            opposite="plain:at_length",
        ),
        Instruction(
            "plain:at_length",
            (
                "Say all there is to say, in more than {} sentences.",
                "Answers take more than {} sentences.",
                "Never stop within {} sentences.",
                "Be thorough: over {} sentences.",
            ),
            (
                "I have time: more than {} sentences, please.",
                "Please write more than {} sentences.",
                "I enjoy answers of over {} sentences.",
                "Do not stop before {} sentences are behind you.",
            ),
            lambda text, most: text if len(rewriting.sentences(text)) > int(most) else None,
            lambda text, most: len(rewriting.sentences(text)) > int(most),
            parameters=("2", "3", "4"),
            opposite="length_constraints:number_sentences",
        ),
    )
}
"""Every instruction by its name."""


@dataclass(frozen=True)
class Wish:
    """An instruction with its parameter."""

    instruction: str
    parameter: str = ""

    def phrasings(self, tier: str) -> list[str]:
        """Every phrasing for `tier`: system_info or user_info."""
        instruction = INSTRUCTIONS[self.instruction]
        forms = instruction.system if tier == "system_info" else instruction.user
        return [form.format(self.parameter) for form in forms]

    def opposites(self) -> list["Wish"]:
        """The wishes that cannot be obeyed together with this one."""
        instruction = INSTRUCTIONS[self.instruction]
        if instruction.opposite is not None:
            return [Wish(instruction.opposite, self.parameter)]
        others = (other for other in instruction.parameters if other != self.parameter)
        return [Wish(instruction.name, other) for other in others]

    def obey(self, text: str) -> str | None:
        """The text rewritten to obey; None if it cannot be rewritten."""
        return INSTRUCTIONS[self.instruction].obey(text, self.parameter)

    def is_obeyed(self, text: str) -> bool:
        """Whether the text obeys."""
        return INSTRUCTIONS[self.instruction].check(text, self.parameter)


def answers(text: str, wish: Wish, against: Wish) -> tuple[str, str] | None:
    """Rewrite a text twice: to obey `wish` but not `against`, and the reverse.

    Returns:
        The two texts; None if the text cannot be rewritten so.
    """
    first, second = wish.obey(text), against.obey(text)
    if first is None or second is None:
        return None
    verdicts = [(each.is_obeyed(first), each.is_obeyed(second)) for each in (wish, against)]
    return (first, second) if verdicts == [(True, False), (False, True)] else None
