"""A model trained and saved here answers where only torch and transformers are installed, on both lines."""

import os
import subprocess
import sys

import pytest

from logramed import LoGraMedForConditionalGeneration, LoGraMedProcessor
from logramed.eval.answering import answer_questions
from logramed.trainer.train import main
from tests.modeling_logramed.test_auto_classes import FOUR, HIDE_LOGRAMED, needs_four
from tests.trainer.test_train import write_recipe


ANSWER = (
    HIDE_LOGRAMED
    + """
from transformers import AutoProcessor
try:
    from transformers import AutoModelForVision2Seq as AutoModelClass
except ImportError:
    from transformers import AutoModelForImageTextToText as AutoModelClass
folder, image, question = sys.argv[1:]
model = AutoModelClass.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
content = [{"type": "image", "path": image}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
sequence = model.generate(**inputs, max_new_tokens=8, do_sample=False)
print(processor.decode(sequence[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
"""
)


@pytest.mark.parametrize(
    "python",
    [
        pytest.param(sys.executable, id="this transformers"),
        pytest.param(FOUR, id="transformers 4.57", marks=needs_four),
    ],
)
def test_trained_folder_gives_the_same_answer_elsewhere(tmp_path, data_file, python):
    main([write_recipe(tmp_path, data_file, max_steps=30, learning_rate=3e-3, num_train_epochs=20)])
    folder = tmp_path / "run"
    question = {
        "image": str(data_file.parent / "images" / "3.png"),
        "question": "what organ is shown",
    }
    model = LoGraMedForConditionalGeneration.from_pretrained(folder)
    processor = LoGraMedProcessor.from_pretrained(folder)
    [(_, expected)] = answer_questions(model, processor, [question], batch_size=1, max_new_tokens=8, progress=False)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", ANSWER, str(folder), question["image"], question["question"]],
        env={**environment, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert expected
    assert done.stdout.strip().splitlines()[-1] == expected
