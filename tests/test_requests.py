"""What goes to which server, and what an answer is kept under."""

from metaalign.config.teacher import TeacherConfig
from metaalign.examples import Turn
from metaalign.upstream import Request, Served, body_of, key_of
from tests.test_upstream import request


def test_user_info_is_a_field_of_metaaligns_server_and_elsewhere_a_part_of_the_system() -> None:
    asked = Request(
        turns=(Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Bye", "I am Ben.")),
        system_info="Be brief.",
        user_info="I am Ana.",
        temperature=0,
    )
    config = TeacherConfig(base_url="http://h/v1", model="m")
    ours = body_of(asked, config, Served(owner="metaalign"))
    assert ours == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye", "user_info": "I am Ben."},
        ],
        "user_info": "I am Ana.",
        "max_tokens": 1024,
        "temperature": 0,
    }
    other = body_of(asked, config, Served(owner="openai"))
    assert "user_info" not in other
    assert [each["content"] for each in other["messages"]] == [
        "Be brief.\n\nWhat the user says of themselves:\nI am Ana.",
        "Hi",
        "Hello.",
        "(What I say of myself now: I am Ben.)\n\nBye",
    ]
    told = TeacherConfig(base_url="http://h/v1", model="m", tiers="fields")
    assert body_of(asked, told, Served(owner="vllm")) == ours


def test_extra_fields_are_added_and_null_takes_one_out() -> None:
    extra = {"temperature": None, "max_tokens": None, "max_completion_tokens": 9, "think": True}
    config = TeacherConfig(base_url="http://h/v1", model="m", extra=extra)
    body = body_of(request(draw="a"), config, Served())
    assert set(body) == {"model", "messages", "seed", "max_completion_tokens", "think"}


def test_the_key_tells_apart_what_may_be_answered_otherwise() -> None:
    config = TeacherConfig(base_url="http://h/v1", model="m")

    def key(asked: Request, identity: str = "a") -> str:
        served = Served(identity=identity)
        return key_of(asked, config, served).name

    one = key(request(draw="0/respond/0"))
    assert key(request(draw="0/respond/0")) == one
    others = [
        key(request(draw="0/respond/1")),
        key(request("Bye?", draw="0/respond/0")),
        key(request(draw="0/respond/0", user_info="I am Ana.")),
        key(request(draw="0/respond/0", temperature=0.5)),
        key(request(draw="0/respond/0"), "b"),
    ]
    assert len({one, *others}) == 6
    assert key(request(draw="a", temperature=0)) == key(request(draw="b", temperature=0))
    assert key(request(max_tokens=9)) == key(request(max_tokens=99))


def test_draws_stay_apart_where_no_seed_is_sent() -> None:
    config = TeacherConfig(base_url="http://h/v1", model="m", extra={"seed": None})
    keys = {key_of(request(draw=f"{number}"), config, Served()).name for number in range(4)}
    assert len(keys) == 4
