import pytest

from logramed.trainer.data.answer_spans import clean_messages, find_layout, locate_answers


MESSAGES = [
    {"role": role, "content": [{"type": "text", "text": text}]}
    for role, text in [("user", "a b?"), ("assistant", "b"), ("user", "?"), ("assistant", "a\nb")]
]


def renderer(write_message, prompt):
    def render(messages, add_generation_prompt=False):
        written = [
            write_message(message["role"], message["content"][0]["text"], is_last=message is messages[-1])
            for message in messages
        ]
        return "".join(written) + (prompt if add_generation_prompt else "")

    return render


RENDERERS = {
    "blanks after the end of a turn are left out": (
        renderer(lambda role, text, is_last: f"<{role}>\n{text}<end>\n", "<assistant>\n"),
        ["b<end>", "a\nb<end>"],
    ),
    "an end of blanks alone is learned": (
        renderer(lambda role, text, is_last: f"{role}: {text}\n", "assistant: "),
        ["b\n", "a\nb\n"],
    ),
    "what the generation prompt leaves to the model is learned": (
        renderer(lambda role, text, is_last: f"{role}: {text}<end>", "assistant:"),
        [" b<end>", " a\nb<end>"],
    ),
    "the end of the conversation belongs to the last answer alone": (
        renderer(lambda role, text, is_last: f"{role}: {text}<end>{'<stop>' * is_last}", "assistant: "),
        ["b<end>", "a\nb<end><stop>"],
    ),
    "texts may be trimmed": (
        renderer(lambda role, text, is_last: f"{role}:{text.strip()}<end>", "assistant:"),
        ["b<end>", "a\nb<end>"],
    ),
}


@pytest.mark.parametrize(("render", "expected"), RENDERERS.values(), ids=RENDERERS)
def test_answers_are_located_to_the_character(render, expected):
    messages = clean_messages(MESSAGES)
    rendered = render(messages)
    spans = locate_answers(rendered, messages, find_layout(messages, render))
    assert [rendered[start:end] for start, end in spans] == expected


def test_a_layout_serves_other_texts_of_the_same_structure():
    render = RENDERERS["texts may be trimmed"][0]
    other = clean_messages(MESSAGES)
    other[1]["content"][0]["text"] = "  user:a(b)*\n"
    layout = find_layout(clean_messages(MESSAGES), render)
    rendered = render(other)
    assert [rendered[start:end] for start, end in locate_answers(rendered, other, layout)] == [
        "user:a(b)*<end>",
        "a\nb<end>",
    ]
