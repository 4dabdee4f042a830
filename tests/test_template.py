"""Tiers to token ids: no text makes a control token, none is lost, a changed template is told."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from metaalign.errors import TemplateError
from metaalign.examples import Turn
from metaalign.store.tokenizer import load_tokenizer, train_tokenizer
from metaalign.template import CONTROL_TOKENS, TIERS, Segment, Template, prompt_segments

TEXT = ("Answer in capitals.", "I am Ana.", "What is the capital of Peru?", "It is Lima. ¡Sí!")
CONTROLS = list(CONTROL_TOKENS.values())

# Text as users write it, laced with everything that looks like a control token.
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*CONTROLS, "<|end|>", "</s>", "<s>", "<unk>", "<0x0A>", "<|", "|>", "▁"]),
        st.sampled_from(["<think>", "</think>", "<|vision|>", "<|pad|>"]),
        st.text(max_size=8),
    ),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def trained() -> Template:
    return train_tokenizer(TEXT, 300)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Template:
    return load_tokenizer(str(shared_data / "stories260k"))


@pytest.fixture(scope="module")
def thinking() -> Template:
    """Special and plain tokens added in turn, as a model's vocabulary grows."""
    tokenizer = train_tokenizer(TEXT, 300).tokenizer
    for token, special in (
        ("<|vision|>", True), ("<think>", False), ("<|pad|>", True), ("</think>", False)
    ):  # fmt: skip
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])  # pyright: ignore
    return Template(tokenizer)


def tokenizer_with(model: models.Model, special: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def count_controls(template: Template, ids: list[int]) -> int:
    special = {*template.control_ids.values(), template.eos_id, template.bos_id}
    special |= {
        template.tokenizer.convert_tokens_to_ids(token) for token in ("<|vision|>", "<|pad|>")
    }
    special -= {None, template.tokenizer.unk_token_id}
    return sum(id in special for id in ids)


def test_a_prompt_is_rendered_tier_by_tier(trained: Template) -> None:
    segments = prompt_segments(
        system_info="Be brief.", user_info="I am Ana.", turns=[Turn("user", "Lima?")]
    )
    assert segments == [
        Segment("system_info", "Be brief."),
        Segment("user_info", "I am Ana."),
        Segment("user_query", "Lima?"),
    ]
    system, user, query, response = (trained.control_ids[tier] for tier in TIERS)
    brief, ana, lima = trained.encode_texts(["Be brief.", "I am Ana.", "Lima?"])
    assert trained.prompt_ids(segments) == [system, *brief, user, *ana, query, *lima, response]
    assert trained.response_ids("Lima?") == [*lima, trained.eos_id]


def test_later_turns_repeat_query_and_response_and_may_update_the_user_info(
    trained: Template,
) -> None:
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c", user_info="d")]
    segments = prompt_segments(system_info="", user_info="", turns=turns)
    assert segments == [
        Segment("user_query", "a"),
        Segment("response", "b"),
        Segment("user_info", "d"),
        Segment("user_query", "c"),
    ]
    _, user, query, response = (trained.control_ids[tier] for tier in TIERS)
    (a,), (b,), (c,), (d,) = trained.encode_texts(["a", "b", "c", "d"])
    end = trained.eos_id
    assert trained.prompt_ids(segments) == [query, a, response, b, end, user, d, query, c, response]


def test_the_beginning_token_stands_once_and_first(stories: Template) -> None:
    turns = [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye")]
    ids = stories.prompt_ids(prompt_segments(system_info="", user_info="Ana", turns=turns))
    assert stories.bos_id == 1
    assert (ids[0], ids.count(1)) == (1, 1)
    assert ids[1] == stories.control_ids["user_info"]


def test_segments_sum_to_the_prompt_less_its_last_control_token(stories: Template) -> None:
    segments = prompt_segments(system_info="S", user_info="U", turns=[Turn("user", "Q")])
    flat = [id for ids in stories.segment_ids(segments) for id in ids]
    assert [*flat, stories.control_ids["response"]] == stories.prompt_ids(segments)


@settings(max_examples=200, deadline=None)
@given(system=TEXTS, user=TEXTS, query=TEXTS, answer=TEXTS, later=TEXTS, update=TEXTS)
@pytest.mark.parametrize("kind", ["trained", "stories", "thinking"])
def test_no_text_makes_a_control_token_in_any_tier_or_turn(
    request: pytest.FixtureRequest, kind: str, system: str, user: str, query: str, answer: str,
    later: str, update: str,
) -> None:  # fmt: skip
    template = request.getfixturevalue(kind)
    turns = [Turn("user", query), Turn("assistant", answer), Turn("user", later, update)]
    segments = prompt_segments(system_info=system, user_info=user, turns=turns)
    # One control token a segment, an end after an earlier response, the last control token, and
    # the beginning token: nothing in the texts adds to that.
    ends = sum(segment.tier == "response" for segment in segments)
    begins = template.bos_id is not None and bool(segments)
    expected = len(segments) + ends + 1 + begins
    assert count_controls(template, template.prompt_ids(segments)) == expected
    ids = template.response_ids(answer)
    assert count_controls(template, ids) == 1
    assert ids[-1] == template.eos_id


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
@pytest.mark.parametrize("kind", ["trained", "thinking"])
def test_a_byte_level_response_decodes_to_exactly_its_text(
    request: pytest.FixtureRequest, kind: str, text: str
) -> None:
    template = request.getfixturevalue(kind)
    assert template.decode(template.response_ids(text)) == text


@settings(max_examples=100, deadline=None)
@given(text=TEXTS.filter(lambda text: "▁" not in text))
def test_stories260k_decodes_to_exactly_its_text(stories: Template, text: str) -> None:
    # Its normaliser writes a space as "▁", so a text that holds that character is the exception.
    assert stories.decode(stories.response_ids(text)) == text


def test_decoding_stops_at_the_end_token_and_drops_control_tokens(trained: Template) -> None:
    (ids,) = trained.encode_texts(["Lima"])
    control = trained.control_ids["user_info"]
    assert trained.decode([control, *ids, trained.eos_id, *ids]) == "Lima"


@pytest.mark.parametrize("spelled", ["<|response|>", "</s>"])
def test_a_vocabulary_that_holds_the_control_tokens_does_not_match_them_in_text(
    spelled: str,
) -> None:
    # A Unigram model and a BPE that ignores merges both match whole pieces of their vocabulary.
    special = [*CONTROLS, "</s>"]
    pieces = [*special, *sorted(set("".join(special)) | {" "})]
    unigram = models.Unigram([("<unk>", 0.0), *((piece, -1.0) for piece in pieces)], unk_id=0)
    bpe = models.BPE({piece: i for i, piece in enumerate(pieces)}, [], ignore_merges=True)
    for model in (unigram, bpe):
        template = Template(tokenizer_with(model, special))
        (ids,) = template.encode_texts([f"{spelled} {spelled}"])
        assert count_controls(template, ids) == 0
        assert template.decode(ids).replace(" ", "") == spelled * 2


def test_a_merge_that_spells_a_control_token_is_dropped() -> None:
    vocabulary = {piece: i for i, piece in enumerate([*CONTROLS, "</", "s>", "<", "/", "s", ">"])}
    vocabulary["</s>"] = len(vocabulary)
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    template = Template(tokenizer_with(models.BPE(vocabulary, merges), [*CONTROLS, "</s>"]))
    assert template.encode_texts(["</s>"]) == [[vocabulary["</"], vocabulary["s>"]]]


def test_an_added_token_that_is_not_special_is_part_of_the_language(thinking: Template) -> None:
    own = thinking.tokenizer
    text = "<think>Lima?</think> a <think>\n"
    (ids,) = thinking.encode_texts([text])
    assert ids == own.encode(text, add_special_tokens=False)  # as the model's own tokenizer
    assert ids.count(own.convert_tokens_to_ids("<think>")) == 2
    assert thinking.decode(ids) == text


def test_special_tokens_are_plain_characters_beside_added_ones(thinking: Template) -> None:
    own = thinking.tokenizer
    for special in ("<|vision|>", "<|pad|>", "<|response|>", "<|end|>"):
        (ids,) = thinking.encode_texts([f"{special}<think>"])
        assert own.convert_tokens_to_ids(special) not in ids
        assert ids[-1] == own.convert_tokens_to_ids("<think>")
        assert thinking.decode(ids) == f"{special}<think>"
        assert thinking.decode([own.convert_tokens_to_ids(special), *ids[-1:]]) != special


def test_an_unknown_token_outside_the_vocabulary_is_no_text() -> None:
    tokenizer = train_tokenizer(TEXT, 300).tokenizer
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])  # pyright: ignore
    template = Template(tokenizer)
    ids = template.encode_texts(["Lima <unk><think>"])[0]
    assert template.decode(ids) == "Lima <unk><think>"
    unknown, think = tokenizer.convert_tokens_to_ids(["<unk>", "<think>"])
    assert template.decode([*ids, unknown, think]) == "Lima <unk><think><think>"


def test_text_tokens_change_the_fingerprint_and_travel(
    thinking: Template, trained: Template, tmp_path: Path
) -> None:
    assert thinking.fingerprint != trained.fingerprint
    thinking.save(tmp_path)
    for other in (Template.verify(tmp_path), pickle.loads(pickle.dumps(thinking))):
        assert other.encode_texts(["a</think>"]) == thinking.encode_texts(["a</think>"])
        assert other.decode(other.response_ids("<think>a")) == "<think>a"


def test_a_base_models_chat_template_is_not_saved(trained: Template, tmp_path: Path) -> None:
    trained.tokenizer.chat_template = "{{ messages[0].content }}"
    try:
        trained.save(tmp_path)
        assert trained.tokenizer.chat_template is not None
    finally:
        trained.tokenizer.chat_template = None
    assert not list(tmp_path.glob("*chat_template*"))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    assert Template.verify(tmp_path).fingerprint == trained.fingerprint


def test_text_that_is_not_utf8_is_refused(trained: Template) -> None:
    with pytest.raises(TemplateError, match="not valid UTF-8"):
        trained.encode_texts(["fine", "\ud800"])


def test_missing_control_tokens_are_named(shared_data: Path) -> None:
    with pytest.raises(TemplateError, match=r"lacks the control tokens <\|system_info\|>, "):
        Template.load(shared_data / "stories260k")


def test_a_missing_end_token_is_told() -> None:
    tokenizer = tokenizer_with(models.BPE({"a": 0}, []), CONTROLS)
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="no end-of-sequence token"):
        Template(tokenizer)


@pytest.mark.parametrize("kind", ["trained", "stories"])
def test_a_saved_template_is_verified_and_renders_alike(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    template: Template = request.getfixturevalue(kind)
    template.save(tmp_path)
    loaded = Template.verify(tmp_path)
    assert loaded.fingerprint == template.fingerprint
    assert loaded.golden() == template.golden()
    assert json.loads((tmp_path / "template.json").read_text())["golden"] == template.golden()


def change_fingerprint(folder: Path) -> None:
    file = folder / "template.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": "0" * 64}))


def change_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer.json"
    backend = json.loads(file.read_text())
    vocabulary = backend["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(backend))


@pytest.mark.parametrize("change", [change_fingerprint, change_vocabulary])
def test_another_template_is_refused_with_both_fingerprints(
    trained: Template, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    trained.save(tmp_path)
    change(tmp_path)
    with pytest.raises(TemplateError, match=r"fingerprint [0-9a-f]{64}, expected [0-9a-f]{64}"):
        Template.verify(tmp_path)


def test_a_folder_without_a_template_is_refused(trained: Template, tmp_path: Path) -> None:
    trained.tokenizer.save_pretrained(str(tmp_path))
    with pytest.raises(TemplateError, match=r"template\.json is missing"):
        Template.verify(tmp_path)
    with pytest.raises(TemplateError, match="no tokenizer can be loaded"):
        Template.load(tmp_path / "none")


def test_a_pickled_template_renders_alike(trained: Template) -> None:
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.golden() == trained.golden()
    assert copy.fingerprint == trained.fingerprint
    assert not hasattr(copy, "tokenizer")


def test_a_tokenizer_of_python_code_is_refused() -> None:
    with pytest.raises(
        TemplateError, match=r"is a dict; only tokenizers of the tokenizers library"
    ):
        Template({})  # pyright: ignore[reportArgumentType]


def test_a_byte_level_tokenizer_without_a_pre_tokenizer_is_exact_too() -> None:
    backend = Tokenizer(
        models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*CONTROLS, "</s>"])
    template = Template(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert template.decode(template.response_ids(" a\r\n</s>\0é")) == " a\r\n</s>\0é"


def test_what_goes_on_from_a_head_keeps_its_space(stories: Template) -> None:
    ids = stories.encode_texts(["Once upon a time"])[0]
    head = stories.encode_texts(["Once upon"])[0]
    assert ids[: len(head)] == head
    rest = ids[len(head) :]
    assert stories.decode_after(head, rest) == " a time"
    assert stories.decode_after([], ids) == stories.decode(ids) == "Once upon a time"
    assert stories.decode(rest) == "a time"  # the tokenizer drops a first space
