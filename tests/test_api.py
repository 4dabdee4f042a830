"""From a request to segments, and from every refusal to OpenAI's error shape."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from metaalign.config import ServeConfig
from metaalign.errors import RequestError
from metaalign.preferences import FAMILIES
from metaalign.serve.api import render, to_sampling, to_segments
from metaalign.serve.bodies import ChatRequest
from metaalign.serve.refusals import Refusal, refuse_invalid
from metaalign.store.tokenizer import train_tokenizer
from metaalign.template import Segment
from tests.tiny_model import TEXTS

QUERY = [{"role": "user", "content": "Capital of Peru?"}]


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "metaalign", "messages": QUERY, **fields})


def refusal(**fields: Any) -> Refusal:
    """What the request is told, whether validation or rendering refuses it."""
    try:
        to_segments(request(**fields))
    except ValidationError as error:
        return refuse_invalid(error.errors())
    except RequestError as error:
        return error.args[0]
    raise AssertionError("the request was accepted")


def test_a_system_message_is_the_system_info() -> None:
    wanted = [
        Segment("system_info", "Be brief."),
        Segment("user_info", "I am Ana."),
        Segment("user_query", "Capital of Peru?"),
    ]
    system = {"role": "system", "content": "Be brief."}
    developer = {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}
    assert to_segments(request(messages=[system, *QUERY], user_info="I am Ana.")) == wanted
    assert to_segments(request(messages=[developer, *QUERY], user_info="I am Ana.")) == wanted
    assert to_segments(request(system_info="Be brief.", user_info="I am Ana.")) == wanted


def test_earlier_turns_and_a_later_user_info_keep_their_places() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.", "refusal": None, "tool_calls": []},
        {"role": "user", "content": "Capital of Peru?", "user_info": "I am Ben now."},
    ]
    assert to_segments(request(messages=messages, user_info="I am Ana.")) == [
        Segment("user_info", "I am Ana."),
        Segment("user_query", "Hi"),
        Segment("response", "Hello."),
        Segment("user_info", "I am Ben now."),
        Segment("user_query", "Capital of Peru?"),
    ]


def test_preferences_are_put_into_words_after_the_user_info() -> None:
    entries = [{"family": "bullets", "parameter": 3}, {"family": "capitals"}]
    segments = to_segments(request(user_info="I am Ana.", preferences=entries))
    bullets = FAMILIES["bullets"].user[0].format("3")
    assert segments[0] == Segment(
        "user_info", f"I am Ana. {bullets} {FAMILIES['capitals'].user[0]}"
    )


def test_an_unknown_family_is_told_which_there_are() -> None:
    told = refusal(preferences=[{"family": "capitals"}, {"family": "rhymes"}])
    assert told.param == "preferences[1].family"
    assert all(name in told.message for name in ("'rhymes'", *FAMILIES))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"family": "bullets"}, "needs a parameter"),
        ({"family": "capitals", "parameter": "x"}, "takes no parameter"),
    ],
)
def test_a_missing_or_superfluous_parameter_is_refused(entry: dict[str, str], words: str) -> None:
    told = refusal(preferences=[entry])
    assert (told.status, told.param) == (400, "preferences[0].parameter")
    assert words in told.message


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temprature": 1}, "temprature", "unknown field (did you mean temperature?)"),
        ({"user_inf": "x"}, "user_inf", "did you mean user_info?"),
        ({"str": 1}, "str", "unknown field (did you mean stream?)"),
        (
            {"messages": [{"role": "user", "content": "x", "rolle": "y"}]},
            "messages[0].rolle",
            "unknown field (did you mean role?)",
        ),
        (
            {"preferences": [{"family": "capitals", "strength": 2}]},
            "preferences[0].strength",
            "unknown field (known: family, parameter)",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'system'"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "Hi"}, "messages", "valid list"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"temperature": float("nan")}, "temperature", "finite number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "lots"}, "max_tokens", "valid integer"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "contradicts"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"user_info": "\ud800"}, "user_info", "not valid Unicode"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    told = refusal(**fields)
    assert told.status == 400
    assert words in told.message
    assert told.param == param


def test_every_bad_field_is_named_at_once() -> None:
    told = refusal(temprature=1, top_p=3, messages=[])
    assert all(name in told.message for name in ("temprature", "top_p", "messages"))


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"logprobs": True},
        {"stop": ["\n"]},
        {"response_format": {"type": "json_object"}},
        {"presence_penalty": 0.5},
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any]) -> None:
    told = refusal(**fields)
    (name,) = fields
    assert told.param == name
    assert told.message == f"{name}: not supported by this server"


def test_everything_that_is_not_supported_is_named() -> None:
    told = refusal(n=2, logprobs=True)
    assert told.message == "logprobs, n: not supported by this server"
    assert told.param == "logprobs"


def test_what_asks_for_nothing_is_accepted() -> None:
    fields = {"n": 1, "tools": None, "stop": None, "logprobs": False, "user": "ana", "store": True}
    assert to_segments(request(**fields)) == [Segment("user_query", "Capital of Peru?")]


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "length_penalty": 1.0},
        {"best_of": 1, "ignore_eos": False, "skip_special_tokens": True, "echo": False},
        {"reasoning_effort": "none", "function_call": "none", "chat_template_kwargs": {}},
        {"request_id": "7", "prompt_cache_retention": "24h"},
    ],
)
def test_defaults_that_clients_send_by_habit_ask_for_nothing(fields: dict[str, Any]) -> None:
    assert to_segments(request(**fields)) == [Segment("user_query", "Capital of Peru?")]


def test_who_speaks_and_what_is_cached_change_no_answer() -> None:
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    echoed = {
        "role": "assistant", "content": "Hello.", "id": "m-1", "name": "lima",
        "reasoning_content": None, "reasoning": "", "reasoning_details": [], "parsed": None,
        "provider_specific_fields": {}, "tool_calls": [], "function_call": None,
    }  # fmt: skip
    messages = [
        {"role": "system", "name": "ops", "content": "Be brief."},
        {"role": "user", "name": "bob", "content": [part], "cache_control": {"type": "ephemeral"}},
        echoed,
        {"role": "user", "name": "eve", "content": "Bye"},
    ]
    assert to_segments(request(messages=messages)) == [
        Segment("system_info", "Be brief."),
        Segment("user_query", "Hi"),
        Segment("response", "Hello."),
        Segment("user_query", "Bye"),
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("tool_calls", [{"id": "1"}]), ("reasoning_content", "Hm."), ("audio", {"id": "a"})],
)
def test_what_an_echoed_answer_says_beside_its_text_is_refused_by_name(
    key: str, value: Any
) -> None:
    answer = {"role": "assistant", "content": "Hello.", key: value}
    told = refusal(messages=[*QUERY, answer, *QUERY])
    assert (told.param, told.message) == (
        f"messages[1].{key}",
        f"messages[1].{key}: not supported by this server",
    )


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("messages", "fields", "param", "words"),
    [
        ([SYSTEM, SYSTEM, *QUERY], {}, "messages[1]", "a second system message"),
        ([*QUERY, SYSTEM], {}, "messages[1]", "must come first"),
        ([SYSTEM, *QUERY], {"system_info": "x"}, "system_info", "together with a system message"),
        ([SYSTEM], {}, "messages", "must begin with a user message"),
        (
            [*QUERY, {"role": "assistant", "content": "Lima"}],
            {},
            "messages",
            "must end with a user",
        ),
        (
            [{"role": "assistant", "content": "Hi"}, *QUERY],
            {},
            "messages",
            "must begin with a user",
        ),
        ([*QUERY, *QUERY], {}, "messages[1]", "a second user message in a row"),
        ([{"role": "user", "content": " \n"}], {}, "messages[0].content", "is empty"),
        (
            [*QUERY, {"role": "assistant", "content": "Hi", "user_info": "x"}, *QUERY],
            {},
            "messages[1].user_info",
            "only a user message",
        ),
    ],
)
def test_messages_out_of_order_are_refused(
    messages: list[dict[str, str]], fields: dict[str, str], param: str, words: str
) -> None:
    told = refusal(messages=messages, **fields)
    assert (told.status, told.param) == (400, param)
    assert words in told.message


def test_what_is_too_long_is_refused_with_the_counts_by_tier() -> None:
    template = train_tokenizer(TEXTS, 300)
    segments = [Segment("system_info", "ab\x00"), Segment("user_query", "\x00" * 20)]
    prompt = render(template, segments)
    # A byte that no merge covers is a token; each tier opens with one; the response's opens last.
    assert prompt.counts["user_query"] == 21
    assert prompt.counts["response"] == 1
    assert len(prompt.tokens) == sum(prompt.counts.values())
    config = ServeConfig(storage="/nowhere", max_tokens=8)
    size = len(prompt.tokens)
    with pytest.raises(RequestError) as caught:
        to_sampling(request(max_tokens=6), prompt, config=config, context=size + 5)
    told = caught.value.args[0]
    assert told.code == "context_length_exceeded"
    assert "user_query 21" in told.message
    assert f"context is {size + 5}" in told.message
    with pytest.raises(RequestError, match="at least 1"):
        to_sampling(request(), prompt, config=config, context=size)
    assert (
        to_sampling(request(max_tokens=6), prompt, config=config, context=size + 6).max_tokens == 6
    )
    # Who does not say how many gets the server's default, or what fits.
    assert to_sampling(request(), prompt, config=config, context=size + 5).max_tokens == 5
    assert to_sampling(request(), prompt, config=config, context=999).max_tokens == 8


def test_a_request_that_does_not_say_is_answered_greedily() -> None:
    template = train_tokenizer(TEXTS, 300)
    prompt = render(template, [Segment("user_query", "Hi")])
    config = ServeConfig(storage="/nowhere")
    sampling = to_sampling(request(), prompt, config=config, context=999)
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.0, 1.0, None)
    drawn = request(temperature=0.7, top_p=0.9, seed=3)
    sampling = to_sampling(drawn, prompt, config=config, context=999)
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.7, 0.9, 3)


def test_an_error_survives_text_that_utf8_cannot_carry() -> None:
    body = Refusal(400, "bad \ud800", "\udfff").body()
    assert json.dumps(body, ensure_ascii=False).encode() == (
        b'{"error": {"message": "bad \\\\ud800", "type": "invalid_request_error", '
        b'"param": "\\\\udfff", "code": null}}'
    )


def test_the_last_message_is_continued_where_that_is_asked_for() -> None:
    template = train_tokenizer(TEXTS, 300)
    head = {"role": "assistant", "content": "The capital"}
    asked = request(
        messages=[*QUERY, head], continue_final_message=True, add_generation_prompt=False
    )
    prompt = render(template, to_segments(asked))
    opened = template.prompt_ids([Segment("user_query", "Capital of Peru?")])
    assert prompt.tokens == [*opened, *template.encode_texts(["The capital"])[0]]
    assert sum(prompt.counts.values()) == len(prompt.tokens)
    assert prompt.counts["response"] == 1 + len(template.encode_texts(["The capital"])[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"continue_final_message": True}, "must end with the assistant message"),
        ({"messages": [*QUERY, {"role": "assistant", "content": "A"}]}, "must end with a user"),
        ({"add_generation_prompt": False}, "continue_final_message and true without it"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "must be false with continue_final_message and true without it",
        ),
    ],
)
def test_what_is_continued_must_be_there_and_asked_for(
    fields: dict[str, Any], message: str
) -> None:
    assert message in refusal(**fields).message
