import json

import pytest
from PIL import Image

from logramed.trainer.data import load_training_rows


ORGANS = ("lung", "liver", "heart", "brain")
SIDES = ("left", "right")


@pytest.fixture
def data_file(tmp_path):
    return write_data_file(tmp_path)


def write_data_file(folder):
    """Eight samples of two turns with extended answers in LLaVA-Med's form, beside their images."""
    (folder / "images").mkdir()
    rows = []
    for number in range(8):
        organ, side = ORGANS[number % 4], SIDES[number // 4]
        Image.new("RGB", (8, 8), (30 * number, 255 - 30 * number, 90)).save(folder / "images" / f"{number}.png")
        dialogue = [
            ("what organ is shown", f"{side} {organ}"),
            (f"is there a mass in the {side} {organ}", ("yes", "no")[number % 2]),
        ]
        entry = {"id": str(number), "image": f"{number}.png"}
        for key, prefix in (("conversations", ""), ("conversations_long", "this image is of the ")):
            entry[key] = [
                {"from": role, "value": ("<image>\n" if turn == 0 and role == "human" else "") + text}
                for turn, (question, answer) in enumerate(dialogue)
                for role, text in (("human", question), ("gpt", prefix + answer))
            ]
        rows.append(entry)
    path = folder / "data.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def rows(data_file):
    return load_training_rows(data_file).dataset
