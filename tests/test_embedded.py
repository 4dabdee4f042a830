"""Batched generation against plain forward passes of the same model."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from metaalign.errors import ModelError
from metaalign.generate.embedded import Answer, EmbeddedEngine, Sampling, check_folder, keep_top_p
from metaalign.store.tokenizer import train_tokenizer
from metaalign.template import Template
from tests.tiny_model import save_tiny_model

GREEDY = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), context=64)


@pytest.fixture(scope="module")
def engine(folder: Path) -> EmbeddedEngine:
    return EmbeddedEngine(folder, device="cpu", batch_size=5)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Seventeen prompts of 2 to 40 tokens, in no order of length."""
    random = torch.Generator().manual_seed(1)
    lengths = torch.randperm(39, generator=random)[:17] + 2
    return [torch.randint(10, 280, (int(n),), generator=random).tolist() for n in lengths]


def one_by_one(folder: Path, prompt: Sequence[int], ends: set[int], most: int) -> Answer:
    """Greedy decoding without padding, cache or generate(): a whole forward pass a token."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens: list[int] = []
    with torch.no_grad():
        while len(tokens) < most:
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            token = int(logits.argmax())
            if token in ends:
                return Answer(tokens, "stop")
            tokens.append(token)
    return Answer(tokens, "length")


def test_a_padded_batch_answers_each_prompt_as_if_it_were_alone(
    folder: Path, engine: EmbeddedEngine, prompts: list[list[int]]
) -> None:
    template = engine.template
    ends = {template.eos_id, *template.control_ids.values()}
    answers = engine.generate(prompts, GREEDY)
    assert answers == [one_by_one(folder, prompt, ends, 12) for prompt in prompts]
    assert len({tuple(answer.tokens) for answer in answers}) > 5  # not one answer for all


def test_the_end_token_stops_an_answer_and_is_not_part_of_it(
    engine: EmbeddedEngine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = engine.generate(prompts[:1], GREEDY)[0].tokens
    # Let the fourth token of the greedy answer be the one that ends answers.
    monkeypatch.setattr(engine, "_ends", frozenset({full[3]}))
    config = engine._model.generation_config
    monkeypatch.setattr(config, "eos_token_id", [full[3]])
    cut = full.index(full[3])
    assert engine.generate(prompts[:1], GREEDY) == [Answer(full[:cut], "stop")]


def test_each_prompt_has_its_own_max_tokens(
    engine: EmbeddedEngine, prompts: list[list[int]]
) -> None:
    full = [answer.tokens for answer in engine.generate(prompts[:5], Sampling(max_tokens=9))]
    limits = [1, 2, 3, 9, 4]
    answers = engine.generate(prompts[:5], [Sampling(max_tokens=limit) for limit in limits])
    for answer, tokens, limit in zip(answers, full, limits, strict=True):
        assert answer.tokens == tokens[:limit]
        if len(tokens) > limit:
            assert answer.finish_reason == "length"


def test_the_context_ends_an_answer_before_its_max_tokens(engine: EmbeddedEngine) -> None:
    answer = engine.generate([[20] * 62], Sampling(max_tokens=50))[0]
    assert (len(answer.tokens), answer.finish_reason) == (2, "length")


def test_a_batch_stays_inside_a_learned_position_table(tmp_path: Path, folder: Path) -> None:
    """A finished long prompt runs on beside a short prompt with a long answer."""
    template = Template.load(folder)
    config = GPT2Config(vocab_size=512, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    template.save(tmp_path)
    engine = EmbeddedEngine(tmp_path)
    long, short = Sampling(max_tokens=4), Sampling(max_tokens=50)
    together = engine.generate([[20] * 60, [21, 22]], [long, short])
    assert together == [
        *engine.generate([[20] * 60], long),
        *engine.generate([[21, 22]], short),
    ]


@pytest.mark.parametrize("prompt", [[20] * 64, []])
def test_a_prompt_without_room_for_an_answer_is_refused(
    engine: EmbeddedEngine, prompt: list[int]
) -> None:
    with pytest.raises(ModelError, match=rf"{len(prompt)} tokens .* context of 64"):
        engine.generate([prompt], GREEDY)


def test_a_seeded_draw_does_not_depend_on_its_batch(
    engine: EmbeddedEngine, prompts: list[list[int]]
) -> None:
    drawn = Sampling(max_tokens=12, temperature=1.5, top_p=0.9, seed=7)
    alone = engine.generate(prompts[:1], drawn)
    greedy = engine.generate(prompts[:4], GREEDY)
    mixed = engine.generate(prompts[:4], [drawn, GREEDY, GREEDY, GREEDY])
    assert mixed == [*alone, *greedy[1:]]
    other = Sampling(max_tokens=12, temperature=1.5, top_p=0.9, seed=8)
    assert engine.generate(prompts[:1], other) != alone


def test_draws_come_as_often_as_the_softmax_says(folder: Path) -> None:
    prompt = [30, 31, 32]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([prompt])).logits[0, -1]
    wanted = (logits / 2.0).softmax(-1)
    samplings = [Sampling(max_tokens=1, temperature=2.0, seed=seed) for seed in range(3000)]
    wide = EmbeddedEngine(folder, device="cpu", batch_size=1000)
    answers = wide.generate([prompt] * 3000, samplings)
    likeliest = int(wanted.argmax())
    share = sum(answer.tokens == [likeliest] for answer in answers) / 3000
    # Five standard errors of a share of 3000 draws.
    error = 5 * (float(wanted[likeliest]) * (1 - float(wanted[likeliest])) / 3000) ** 0.5
    assert share == pytest.approx(float(wanted[likeliest]), abs=error)


def test_top_p_keeps_the_fewest_tokens_that_hold_the_probability() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    # 0.5 + 0.25 = 0.75 holds 0.7; 0.5 alone holds 0.5 and anything below it.
    assert keep_top_p(logits, 0.7).isfinite().tolist() == [False, True, False, True]
    assert keep_top_p(logits, 0.4).isfinite().tolist() == [False, True, False, False]
    assert keep_top_p(logits, 1e-9).isfinite().tolist() == [False, True, False, False]
    assert keep_top_p(logits, 1.0).isfinite().all()


def test_a_listener_hears_every_token_then_the_answer_and_may_end_it(
    engine: EmbeddedEngine, prompts: list[list[int]]
) -> None:
    heard: dict[int, list[int | Answer]] = {number: [] for number in range(7)}

    def listen(number: int, arrival: int | Answer) -> bool:
        heard[number].append(arrival)
        return number != 3

    answers = engine.generate(prompts[:7], GREEDY, listen)
    for number, answer in enumerate(answers):
        assert heard[number] == [*answer.tokens, answer]
    assert len(answers[3].tokens) <= 1


def test_a_folder_without_a_model_is_named_with_its_remedy(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"nowhere: the model folder does not exist; run the export"
    ):
        EmbeddedEngine(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        check_folder(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        check_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = (folder / "tokenizer_config.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        EmbeddedEngine(tmp_path)


def test_a_model_smaller_than_its_tokenizer_is_refused(tmp_path: Path) -> None:
    small = save_tiny_model(tmp_path / "small")
    large = train_tokenizer(("some other text " * 3, "a longer one with more words"), 320)
    assert large.vocabulary_size > 280
    model = AutoModelForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(280)
    model.save_pretrained(small)
    large.save(small)
    with pytest.raises(ModelError, match="vocabulary has 280 tokens, fewer"):
        EmbeddedEngine(small)
