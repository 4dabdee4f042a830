import numpy as np
import pytest

from metaalign.errors import PlanError
from metaalign.steps.selection import select_best, select_labelled, select_ranked, subset, take
from metaalign.store.encoder import NO_META_PROMPT
from tests.tiny_columns import Item, make_columns

PAIR = Item(responses=(3, 5), scores=(0.0, 1.0))


def test_sft_takes_the_highest_score_and_the_first_of_equals():
    columns = make_columns(
        [
            PAIR,
            Item(responses=(2, 3, 4), scores=(1.0, 2.0, 2.0)),
            Item(responses=(2, 6), scores=(None, -5.0)),
            Item(responses=(7, 8), scores=(None, None)),
        ]
    )
    selection = select_best(columns, split="train", context=100)
    assert selection.response.tolist() == [1, 1, 1, 0]
    assert selection.target_count.tolist() == [5, 3, 6, 7]
    assert selection.sequence_length.tolist() == [10, 8, 11, 12]  # the prompt has 4 + 1 tokens
    assert selection.tokens.tolist() == [10, 8, 11, 12]


def test_sft_never_takes_what_is_marked_undesirable():
    columns = make_columns(
        [
            Item(responses=(3, 5), scores=(0.0, 1.0), desirable=(1, 0)),
            Item(responses=(3, 5), scores=(0.0, 1.0), desirable=(0, 0)),
            Item(responses=(3, 5), scores=(0.0, 1.0), desirable=(-1, 0)),
        ]
    )
    selection = select_best(columns, split="train", context=100)
    assert selection.example.tolist() == [0, 2]
    assert selection.response.tolist() == [0, 0]
    assert selection.ledger["no_best_response"] == 1


def test_sft_weighs_an_example_by_its_target_tokens():
    columns = make_columns([PAIR._replace(weight=0.5), Item(responses=(4,), weight=2.0)])
    selection = select_best(columns, split="train", context=100)
    assert selection.loss_weight.tolist() == [2.5, 8.0]  # 0.5 * 5 and 2 * 4


def test_a_ranking_keeps_the_scored_responses_and_weighs_as_one():
    columns = make_columns(
        [
            Item(responses=(2, 3, 4), scores=(1.0, None, 0.0), weight=3.0),
            Item(responses=(2, 3), scores=(1.0, 1.0)),
            Item(responses=(2,), scores=(1.0,)),
            Item(responses=(2, 3), scores=(None, 1.0)),
            PAIR,
        ]
    )
    selection = select_ranked(columns, split="train", context=100)
    assert selection.example.tolist() == [0, 4]
    assert selection.response.tolist() == [0, 2, 0, 1]
    assert selection.response_start.tolist() == [0, 2, 4]
    assert selection.tokens.tolist() == [5 + 2 + 4, 5 + 3 + 5]
    assert selection.loss_weight.tolist() == [3.0, 1.0]
    assert selection.ledger["no_order"] == 3


def test_too_long_is_counted_by_the_tier_that_holds_most():
    system = (("system_info", 50), ("user_query", 4))
    columns = make_columns(
        [
            PAIR,
            PAIR._replace(segments=system),
            PAIR._replace(responses=(3, 80)),
            PAIR._replace(segments=(("user_query", 30), ("response", 40), ("user_query", 35))),
            PAIR._replace(segments=system, split="held_out"),
        ]
    )
    for select in (select_best, select_ranked):
        ledger = select(columns, split="train", context=40).ledger
        assert ledger["in"] == 4
        assert ledger["out"] == 1
        assert ledger["too_long_system_info"] == 1
        assert ledger["too_long_response"] == 1
        assert ledger["too_long_user_query"] == 1
        assert ledger["in"] == sum(ledger.values()) - ledger["in"]


def test_the_longest_sequence_may_be_as_long_as_the_context_and_no_longer():
    columns = make_columns([PAIR])  # 5 + 5 tokens
    assert len(select_ranked(columns, split=None, context=10)) == 1
    with pytest.raises(PlanError, match="too_long_user_query"):
        select_ranked(columns, split=None, context=9)


def test_an_example_too_long_for_a_response_that_is_not_used_is_kept():
    columns = make_columns([Item(responses=(90, 5), scores=(0.0, 1.0))])
    assert len(select_best(columns, split="train", context=10)) == 1


def test_groups_are_of_one_meta_prompt_or_one_conversation():
    columns = make_columns([Item(meta_prompt=7, conversation=n) for n in (1, 2)])
    by_meta_prompt = select_best(columns, split="train", context=99, group_by="meta_prompt")
    assert by_meta_prompt.group.tolist() == [7, 7]
    by_conversation = select_best(columns, split="train", context=99, group_by="conversation")
    assert by_conversation.group.tolist() == [1, 2]


def test_without_a_meta_prompt_an_example_is_grouped_by_its_conversation():
    without = Item(meta_prompt=NO_META_PROMPT)
    columns = make_columns(
        [without._replace(conversation=n) for n in (1, 2, 2)] + [Item(meta_prompt=7)] * 2
    )
    selection = select_best(columns, split="train", context=99, group_by="meta_prompt")
    assert selection.group.tolist() == [1, 2, 2, 7, 7]


def test_a_subset_is_drawn_by_seed_and_keeps_store_order():
    columns = make_columns([Item(responses=(n % 7 + 1,)) for n in range(50)])
    selection = select_best(columns, split="train", context=100)
    drawn = subset(selection, 10, seed=3)
    assert len(drawn) == 10
    assert (np.diff(drawn.example) > 0).all()
    assert drawn.target_count.tolist() == [n % 7 + 1 for n in drawn.example]
    assert drawn.example.tolist() == subset(selection, 10, seed=3).example.tolist()
    assert drawn.example.tolist() != subset(selection, 10, seed=4).example.tolist()
    assert drawn.ledger["out"] == 10
    assert drawn.ledger["not_drawn"] == 40


def test_taking_moves_each_examples_responses_with_it():
    columns = make_columns([PAIR, Item(responses=(1, 2, 3), scores=(3.0, 2.0, 1.0)), PAIR])
    taken = take(select_ranked(columns, split=None, context=99), np.array([1, 0]))
    assert taken.example.tolist() == [1, 0]
    assert taken.target_count.tolist() == [1, 2, 3, 3, 5]
    assert taken.response_start.tolist() == [0, 3, 5]


MARKED = Item(responses=(3, 5), scores=(None, None), desirable=(1, 0))


def test_kto_takes_marked_responses_and_the_next_conversations_first():
    columns = make_columns(
        [
            MARKED._replace(conversation=1),
            PAIR._replace(conversation=2),
            Item(responses=(7,), desirable=(0,), conversation=1, weight=2.0),
            Item(responses=(2, 6), scores=(None, None), desirable=(-1, 1), conversation=3),
        ]
    )
    selection = select_labelled(columns, split="train", context=100)
    assert selection.example.tolist() == [0, 2, 3]
    assert selection.ledger["no_label"] == 1
    # Store row and number: own responses, then the mismatched one; from the end on to the start.
    assert selection.response_row.tolist() == [0, 0, 3, 2, 3, 3, 0]
    assert selection.response.tolist() == [0, 1, 1, 0, 1, 1, 0]
    assert selection.mismatched.tolist() == [False, False, True, False, True, False, True]
    assert selection.response_start.tolist() == [0, 3, 5, 7]
    assert selection.target_count.tolist() == [3, 5, 6, 7, 6, 6, 3]
    assert selection.sequence_length.tolist() == [8, 10, 11, 12, 11, 11, 8]
    assert selection.tokens.tolist() == [5 + 14, 5 + 13, 5 + 9]
    assert selection.loss_weight.tolist() == [1.0, 2.0, 1.0]


def test_a_mismatched_response_fits_the_context_or_the_example_is_left_out_and_counted():
    long, short = Item(responses=(9,), desirable=(1,)), Item(responses=(2,), desirable=(1,))
    roomy = short._replace(segments=(("user_query", 7),))
    items = [
        roomy._replace(conversation=1),  # 8 + 9 is too long for it, 8 + 2 is not
        long._replace(conversation=2),
        short._replace(conversation=3),
    ]
    selection = select_labelled(make_columns(items), split=None, context=14)
    assert selection.response_row[selection.mismatched].tolist() == [2, 2, 0]
    selection = select_labelled(make_columns(items[:2]), split=None, context=14)
    assert selection.example.tolist() == [1]
    assert selection.ledger["no_mismatched_response"] == 1
    assert selection.ledger["in"] == sum(selection.ledger.values()) - selection.ledger["in"]


def test_kto_refuses_what_it_cannot_learn_from():
    with pytest.raises(PlanError, match="give responses `desirable: true` or `false`"):
        select_labelled(make_columns([PAIR]), split=None, context=99)
    with pytest.raises(PlanError, match="more than one conversation"):
        select_labelled(make_columns([MARKED, MARKED]), split=None, context=99)


def test_taking_keeps_the_source_of_a_mismatched_response():
    columns = make_columns([MARKED._replace(conversation=n) for n in range(3)])
    taken = take(select_labelled(columns, split=None, context=99), np.array([2]))
    assert taken.response_row.tolist() == [2, 2, 0]
    assert taken.mismatched.tolist() == [False, False, True]
