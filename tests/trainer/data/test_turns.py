from datasets import Dataset

from logramed.trainer.data import TurnShuffler, questions_of_rows


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


def answers(rows):
    return [
        message["content"][0]["text"] for row in rows for message in row["messages"] if message["role"] == "assistant"
    ]


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


def row_with_placed_images():
    """Two images in the first question, with text between, and one in the second."""
    image, text = {"type": "image", "text": None}, {"type": "text", "text": "or"}
    several = row("several", 3)
    several["images"] = ["/a.png", "/b.png", "/c.png"]
    several["messages"][0]["content"] = [image, text, image, *several["messages"][0]["content"][1:]]
    several["messages"][2]["content"].append(image)
    return several


def test_turns_of_a_row_of_several_images_stay_as_they_are():
    several = row_with_placed_images()
    columns = {name: [several[name]] for name in several}
    assert TurnShuffler(0, max_turns=1)(columns) == columns


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
