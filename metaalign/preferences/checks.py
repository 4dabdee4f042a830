"""The checks of the preference families. Each takes an answer and the parameter, and returns
whether the answer has the style."""

import json
import re

from metaalign.preferences.questions import words


def obeys_capitals(answer: str, _: str) -> bool:
    return answer == answer.upper()


def obeys_lowercase(answer: str, _: str) -> bool:
    return answer == answer.lower()


def obeys_language(answer: str, language: str) -> bool:
    said = words(answer)
    english, spanish = {"the", "is"} & said, {"la", "el", "es"} & said
    wanted, other = (spanish, english) if language == "Spanish" else (english, spanish)
    return bool(wanted) and not other


def obeys_json(answer: str, key: str) -> bool:
    try:
        value = json.loads(answer)
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict) and list(value) == [key]


def obeys_bullets(answer: str, count: str) -> bool:
    bullets = [line for line in answer.splitlines() if line.startswith("- ")]
    return len(bullets) == int(count)


def obeys_ending(answer: str, word: str) -> bool:
    ends = re.search(rf"\b{re.escape(word.casefold())}\W*$", answer.casefold())
    return ends is not None


def obeys_greeting(answer: str, name: str) -> bool:
    greets = re.match(rf"hello {re.escape(name.casefold())}\b", answer.casefold())
    return greets is not None


def obeys_brief(answer: str, most: str) -> bool:
    return len(answer.split()) <= int(most)


def obeys_detailed(answer: str, _: str) -> bool:
    return len(answer.split()) >= 9


def obeys_banned(answer: str, word: str) -> bool:
    return word not in words(answer) and len(answer.split()) >= 4


def obeys_hedged(answer: str, _: str) -> bool:
    return "i think" in answer.casefold()


def obeys_certain(answer: str, _: str) -> bool:
    return "certainly" in words(answer)


def obeys_cautious(answer: str, _: str) -> bool:
    return "cannot" in words(answer)


def obeys_frank(answer: str, _: str) -> bool:
    return not {"cannot", "careful"} & words(answer)


def obeys_stance(answer: str, side: str) -> bool:
    return side in words(answer)
