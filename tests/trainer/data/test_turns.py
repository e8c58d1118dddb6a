import random

import pytest
from datasets import Dataset

from logramed.trainer.data import TurnShuffler, hold_out_turns, questions_of_rows


def row(name, num_turns, extended=True):
    messages = []
    for turn in range(num_turns):
        question = [{"type": "text", "text": f"question {turn}"}]
        if turn == 0:
            question = [{"type": "image", "text": None}, *question]
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": f"answer {name}{turn}"}]},
        ]
    return {
        "id": name,
        "images": ["/image.png"],
        "messages": messages,
        "extended_answers": [f"long {name}{turn}" for turn in range(num_turns)] if extended else None,
    }


ROWS = [row("a", 4), row("b", 1), row("c", 3)]


def answers(rows):
    return [
        message["content"][0]["text"] for row in rows for message in row["messages"] if message["role"] == "assistant"
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_hold_out_divides_the_turns_and_keeps_each_row_in_training(seed, share):
    training, held_out = hold_out_turns(ROWS, share, seed)
    assert [row["id"] for row in training] == ["a", "b", "c"]
    assert sorted(answers(training) + answers(held_out)) == sorted(answers(ROWS))
    assert len(answers(held_out)) == round(share * 8)
    for part in (*training, *held_out):
        contents = [message["content"] for message in part["messages"]]
        assert [content[0]["type"] for content in contents] == ["image"] + ["text"] * (len(contents) - 1)
        assert part["extended_answers"] == [text.replace("answer", "long") for text in answers([part])]


def test_hold_out_is_the_same_for_the_same_seed():
    assert hold_out_turns(ROWS, 0.5, 1) == hold_out_turns(ROWS, 0.5, 1)
    assert any(hold_out_turns(ROWS, 0.5, seed) != hold_out_turns(ROWS, 0.5, 1) for seed in range(2, 6))


def test_hold_out_keeps_rows_without_extended_answers():
    training, _ = hold_out_turns([row("a", 4, extended=False)], 0.5, 0)
    assert training[0]["extended_answers"] is None


def test_each_turn_becomes_a_question_closed_if_answered_yes_or_no():
    source = row("a", 2)
    source["messages"][3]["content"][0]["text"] = "Yes."
    found = questions_of_rows([source, {**row("b", 1), "images": []}])
    assert [(q["question_id"], q["question"], q["answer"], q["answer_type"]) for q in found] == [
        ("a#0", "question 0", "answer a0", "OPEN"),
        ("a#1", "question 1", "Yes.", "CLOSED"),
    ]


def test_shuffled_turns_keep_question_answer_and_extension_together():
    shuffler = TurnShuffler(seed=0)
    rows = Dataset.from_list([row("a", 4), row("c", 3)]).with_transform(shuffler)
    orders = set()
    for epoch in range(10):
        shuffler.set_epoch(epoch)
        seen = rows[0]
        assert rows[0] == seen  # whatever else was drawn meanwhile
        texts = [next(part["text"] for part in m["content"] if part["type"] == "text") for m in seen["messages"]]
        order = [text.removeprefix("answer a") for text in texts[1::2]]
        assert texts[0::2] == [f"question {turn}" for turn in order]
        assert seen["extended_answers"] == [f"long a{turn}" for turn in order]
        assert sorted(order) == ["0", "1", "2", "3"]
        assert seen["messages"][0]["content"][0]["type"] == "image"
        assert sum(part["type"] == "image" for m in seen["messages"] for part in m["content"]) == 1
        orders.add(tuple(order))
    assert len(orders) > 1


def hold_out_one_by_one(rows, share, seed):
    """(row, turn) of each turn held out: counted anew before each draw."""
    generator = random.Random(seed)
    candidates = [(number, turn) for number, row in enumerate(rows) for turn in range(len(row["messages"]) // 2)]
    generator.shuffle(candidates)
    held_out = []
    for number, turn in candidates:
        is_enough = len(held_out) >= round(share * len(candidates))
        num_held = sum(other == number for other, _ in held_out)
        if not is_enough and num_held + 1 < len(rows[number]["messages"]) // 2:
            held_out.append((number, turn))
    return sorted(held_out)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_hold_out_draws_what_counting_anew_draws(seed, share):
    generator = random.Random(seed)
    rows = [row(str(number), generator.randint(1, 5)) for number in range(12)]
    training, held_out = hold_out_turns(rows, share, seed)
    expected = [f"answer {number}{turn}" for number, turn in hold_out_one_by_one(rows, share, seed)]
    assert answers(held_out) == expected
    assert answers(training) == [answer for answer in answers(rows) if answer not in expected]


def row_with_placed_images():
    """Two images in the first question, with text between, and one in the second."""
    image, text = {"type": "image", "text": None}, {"type": "text", "text": "or"}
    several = row("several", 3)
    several["images"] = ["/a.png", "/b.png", "/c.png"]
    several["messages"][0]["content"] = [image, text, image, *several["messages"][0]["content"][1:]]
    several["messages"][2]["content"].append(image)
    return several


def test_turns_of_a_row_whose_images_have_their_places_are_neither_moved_nor_held_out():
    several = row_with_placed_images()
    training, held_out = hold_out_turns([several, row("a", 4)], 0.9, 0)
    assert training[0] == several
    assert {row["id"] for row in held_out} == {"a"}
    columns = {name: [several[name]] for name in several}
    assert TurnShuffler(0, max_turns=1)(columns) == columns
    first = several | {"messages": row("several", 3)["messages"], "images": ["/a.png", "/b.png"]}
    first["messages"][0]["content"].insert(0, {"type": "image", "text": None})
    orders = set()
    for epoch in range(8):
        shuffler = TurnShuffler(0)
        shuffler.set_epoch(epoch)
        (messages,) = shuffler({name: [first[name]] for name in first})["messages"]
        orders.add(tuple(answers([{"messages": messages}])))
        assert [part["type"] for part in messages[0]["content"]] == ["image", "image", "text"]
    assert len(orders) > 1


def test_a_turn_of_several_images_is_asked_about_its_own_or_all_so_far():
    asked = questions_of_rows([row_with_placed_images()])
    assert [question["images"] for question in asked] == [
        ["/a.png", "/b.png"],
        ["/c.png"],
        ["/a.png", "/b.png", "/c.png"],
    ]
    assert [question["question"] for question in asked] == [
        "<image>\nor\n<image>\nquestion 0",
        "question 1\n<image>",
        "question 2",
    ]
