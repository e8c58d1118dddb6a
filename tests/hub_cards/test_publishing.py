"""Train, publish, load elsewhere: the whole way, against a server that speaks the Hub's protocol."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from logramed import AutoModelForVision2Seq, LoGraMedProcessor
from logramed.hub_cards.push import PushError
from logramed.trainer import train
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.data import load_training_rows
from tests.hub_cards.conftest import REPO, run
from tests.hub_client import client_of
from tests.hub_server import TOKEN, Fault, running_hub
from tests.modeling_logramed.test_auto_classes import FOUR, needs_four
from tests.trainer.conftest import write_data_file
from tests.trainer.test_never_lost import trainer_for


pytestmark = pytest.mark.usefixtures("default_text_encoder")


QUESTION = "Is there a lesion?"
ANSWER = """
import json, sys
for name in ("logramed", "torchvision", "trl", "peft", "evaluate", "datasets"):
    sys.modules[name] = None  # looks as if it were not installed
import transformers
from transformers import AutoProcessor
repo, revision, auto_class, image = sys.argv[1:]
options = {"trust_remote_code": True, "revision": revision}
model = getattr(transformers, auto_class).from_pretrained(repo, **options).eval()
processor = AutoProcessor.from_pretrained(repo, **options)
text = {"type": "text", "text": "Is there a lesion?"}
messages = [{"role": "user", "content": [{"type": "image", "path": image}, text]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
sequence = model.generate(**inputs, max_new_tokens=8, do_sample=False)
print(json.dumps({"tokens": sequence[0].tolist(), "class": type(model).__module__.split(".")[0]}))
"""
LINES = [
    pytest.param(sys.executable, "AutoModelForImageTextToText", id="this transformers"),
    pytest.param(
        FOUR,
        "AutoModelForVision2Seq",
        id="transformers 4.57",
        marks=needs_four,
    ),
]


@pytest.mark.parametrize(("python", "auto_class"), LINES)
def test_a_trained_and_published_model_answers_the_same_where_only_transformers_is(
    published, phantoms, tmp_path, python, auto_class
):
    image = str(phantoms / "images" / "test_00001.png")
    with client_of(published["hub"]):
        HfApi(token=TOKEN).create_tag(REPO, tag=f"v-{tmp_path.name}")
    environment = published["environment"] | {"HF_HOME": str(tmp_path / "home")}
    done = run(ANSWER, REPO, f"v-{tmp_path.name}", auto_class, image, environment=environment, python=python)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["class"] == "transformers_modules"
    assert found["tokens"] == answer_here(published["model"], image)


def answer_here(folder, image):
    """The tokens of question and answer, by the model in `folder`."""
    model = AutoModelForVision2Seq.from_pretrained(folder).eval()
    processor = LoGraMedProcessor.from_pretrained(folder)
    content = [{"type": "image", "path": image}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()


def test_the_code_of_the_card_and_of_the_documentation_loads_and_answers(published, phantoms, tmp_path):
    card = published["hub"].hub.files("models", REPO)["README.md"].decode()
    [code] = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    image = phantoms / "images" / "test_00001.png"
    code = code.replace("image.png", str(image)).replace("max_new_tokens=64", "max_new_tokens=4")
    readme = Path(__file__).parents[2] / "hub_cards" / "README.md"
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text(), flags=re.MULTILINE | re.DOTALL)
    [loading] = [block for block in blocks if "from_pretrained" in block]
    assert loading.count("someone/logramed-mini") == 2
    code += loading.replace("someone/logramed-mini", REPO) + "\nprint(type(model).__name__, type(processor).__name__)"
    done = run(code, environment=published["environment"] | {"HF_HOME": str(tmp_path / "home")})
    assert len(done.stdout.splitlines()) >= 2  # the answer, which may be empty after four steps, and the classes
    assert done.stdout.split()[-2:] == ["LoGraMedForConditionalGeneration", "LoGraMedProcessor"]


def test_an_adapter_trained_on_a_model_of_the_hub_names_it_and_loads_by_the_code_of_its_card(
    published, phantoms, tmp_path
):
    options = {
        "model": REPO,
        "train_data": phantoms / "train.json",
        "output_dir": tmp_path / "runs" / "adapter",
        "use_peft": True,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "alignment_preset": "paper",
        "push_to_hub": True,
        "hub_model_id": "tester/adapter",
        "hub_license": "apache-2.0",
        "use_cpu": True,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = published["environment"] | {"HF_HOME": str(tmp_path / "home")}
    run("trainer/train.py", *arguments, environment=environment)
    files = published["hub"].hub.files("models", "tester/adapter")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == REPO
    assert "model.safetensors" not in files
    card = files["README.md"].decode()
    assert f"base_model:\n- {REPO}" in card
    assert f"Made from [{REPO}](https://huggingface.co/{REPO})" in card
    [code] = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    code = code.replace("image.png", str(phantoms / "images" / "test_00001.png"))
    done = run(f"{code}\nprint(type(model).__name__)", environment=environment)
    assert done.stdout.splitlines()[-1].startswith("PeftModel")


def test_a_run_that_would_go_public_unasked_is_refused_before_it_begins(tmp_path):
    rows = load_training_rows(write_data_file(tmp_path)).dataset
    with running_hub(tmp_path / "hub") as hub, client_of(hub):
        HfApi(token=TOKEN).create_repo(REPO, private=False)
        options = {"push_to_hub": True, "hub_model_id": REPO, "hub_license": "mit"}
        with pytest.raises(ValueError, match=r"public already.*hub_private_repo false"):
            trainer_for(tmp_path, rows, **options)
        trainer = trainer_for(tmp_path, rows, **options, hub_private_repo=False)
        hub.hub.faults = [Fault("/commit/", 403, times=10)]
        trainer.train()
        train.write_results(trainer, {"train_runtime": 1.0}, trainer.state.log_history)
        with pytest.raises(PushError, match="403") as error:
            trainer.push_to_hub()
        assert "The run is complete in" in error.value.__notes__[0]
        assert f"--repo {REPO} --license mit" in error.value.__notes__[0]
        hub.hub.faults = []
        assert trainer.push_to_hub() == hub.hub.read("models", REPO)["refs"]["main"]


def test_a_run_publishes_once_privately_and_nothing_of_its_state_or_this_machine(published):
    hub, files = published["hub"].hub, published["hub"].hub.files("models", REPO)
    repo = hub.read("models", REPO)
    assert repo["private"]
    assert len(repo["commits"]) == 2  # the first is that of the empty repository
    assert {
        "model.safetensors",
        "config.json",
        "modeling_logramed.py",
        "processor_config.json",
        "tokenizer.json",
    } <= set(files)
    assert {"README.md", "train_metrics.json", "run.json", "curves.png"} <= set(files)
    assert not [
        name for name in files if re.search(r"optimizer|scheduler|rng|checkpoint|training_args|\.pt$|\.bin$", name)
    ]
    home, here = str(published["model"]).encode(), str(Path.cwd()).encode()
    assert not [name for name, content in files.items() if home in content or here in content]
    assert "phantoms/data" not in files["run.json"].decode()


def test_the_card_is_ours_not_that_of_trl(published):
    for card in (
        published["hub"].hub.files("models", REPO)["README.md"].decode(),
        (published["model"] / "README.md").read_text(),
    ):
        assert "Not for clinical use" in card
        assert "arXiv:2410.02615" in card
        assert "generated_from_trainer" not in card
        assert "time machine" not in card
    assert not list(published["model"].glob("**/checkpoint-*/README.md"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "needs `hub_license`"),
        (
            {"hub_license": "mit", "hub_strategy": "all_checkpoints"},
            "'all_checkpoints' would publish optimizer states",
        ),
    ],
)
def test_a_run_that_could_not_be_published_as_it_should_is_refused_before_it_begins(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        LoGraMedTrainingArguments(output_dir=str(tmp_path), push_to_hub=True, use_cpu=True, **values)


def test_a_run_is_published_privately_unless_asked(tmp_path):
    options = {"output_dir": str(tmp_path), "push_to_hub": True, "hub_license": "mit", "use_cpu": True}
    assert LoGraMedTrainingArguments(**options).hub_private_repo is True
    assert LoGraMedTrainingArguments(**options, hub_private_repo=False).hub_private_repo is False
