"""A saved folder in fresh processes where `logramed` is not installed, on both lines of transformers."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import logramed
from logramed import LoGraMedForConditionalGeneration
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_inputs, tiny_model


FOUR = os.environ.get("LOGRAMED_TRANSFORMERS_4_PYTHON")
NO_FOUR = "set LOGRAMED_TRANSFORMERS_4_PYTHON to the Python of an environment with constraints-4.57.txt"
needs_four = pytest.mark.skipif(FOUR is None, reason=NO_FOUR)
LINES = [
    pytest.param(sys.executable, id="this transformers"),
    pytest.param(FOUR, id="transformers 4.57", marks=needs_four),
]
COMBINATIONS = [
    ("clip", "llama", {}),
    ("clip", "qwen2", {"dense_connector": "sti", "text_sizes": {"tie_word_embeddings": True}}),
    ("siglip", "mistral", {"dense_connector": "dci"}),
    ("dinov2", "qwen2", {"dense_connector": "sci"}),
    ("clip", "llama", {"image_token_pooling": 3, "vision_sizes": {"patch_size": 2}}),
]
HIDE_LOGRAMED = """
import sys
for name in ("logramed", "torchvision", "trl", "peft", "evaluate", "datasets"):
    sys.modules[name] = None  # looks as if it were not installed
"""
ANSWER = (
    HIDE_LOGRAMED
    + """
import json, torch, transformers
folder, auto_class = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
inputs = torch.load(folder + "/inputs.pt")
with torch.no_grad():
    logits = model(**inputs).logits
sequence = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
torch.save((logits, sequence), folder + "/outputs.pt")
print(type(model).__module__.split(".")[0], type(model).__name__)
"""
)
SAVE_AGAIN = (
    HIDE_LOGRAMED
    + """
from transformers import AutoModel, AutoProcessor
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])
AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])
"""
)
LONG_TEXTS = (
    HIDE_LOGRAMED
    + """
import json, torch
from transformers import AutoModelForImageTextToText
for folder in sys.argv[1:]:
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        torch.save(model(input_ids=torch.load(folder + "/input_ids.pt")).logits, folder + "/outputs.pt")
"""
)
# Rotary positions that no line of transformers takes by default.
ROTARY = {
    "theta": ("llama", {"rope_theta": 1e6}),
    "theta of Mistral": ("mistral", {"rope_theta": 1e6}),
    "theta of Qwen": ("qwen2", {"rope_theta": 1e6}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 2e4, "factor": 4.0}}),
    "llama3": (
        "llama",
        {
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
        },
    ),
}
EXPAND = (
    HIDE_LOGRAMED
    + """
import json, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model.model.multi_modal_projector.linear_2.weight.data.mul_(200)  # what is seen decides the answer
colours = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
images = [[Image.new("RGB", (8, 8), colours[place]) for place in range(number)] for number in range(4)]
prompts = ["<image> " * number + "what organ is shown ?" for number in range(4)]

def first_logits(chosen, **options):
    # Of the first generated token, one row for each prompt and beam.
    own = [images[number] for number in chosen]
    inputs = processor(text=[prompts[number] for number in chosen], images=own if any(own) else None,
                       padding=True, padding_side="left", return_tensors="pt")
    options |= {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 3}
    return model.generate(**inputs, **options).logits[0]

found = {}
for name, options in {"beams": dict(num_beams=3), "several": dict(num_beams=4, num_return_sequences=3),
                      "drawn": dict(do_sample=True, num_return_sequences=2)}.items():
    num_copies = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
    expected = torch.cat([first_logits([number]).repeat(num_copies, 1) for number in range(4)])
    one_by_one = torch.cat([first_logits([number], **options) for number in range(4)])
    together = first_logits(range(4), **options)
    found[name] = max((values - expected).abs().max().item() for values in (together, one_by_one))
before = first_logits([3])
images[3] = [images[3][place] for place in (0, 2, 1)]
found["other order"] = (first_logits([3]) - before).abs().max().item()
print(json.dumps(found))
"""
)
PIPELINE = (
    HIDE_LOGRAMED
    + """
import json
from PIL import Image
from transformers import pipeline
asker = pipeline("image-text-to-text", model=sys.argv[1], trust_remote_code=True)
image = Image.new("RGB", (20, 9), (200, 20, 90))
messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what is this"}]}]
out = asker(text=messages, max_new_tokens=4, do_sample=False, return_full_text=False)
print(json.dumps(out[0]["generated_text"]))
"""
)


def run(python, script, *arguments, home):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def save_with_inputs(model, folder):
    model.save_pretrained(folder)
    inputs = tiny_inputs(model, num_images=2)
    torch.save(inputs, folder / "inputs.pt")
    with torch.no_grad():
        return inputs, model(**inputs).logits


@pytest.mark.parametrize("python", LINES)
def test_both_lines_rotate_positions_alike(tmp_path, python):
    logits, generator = {}, torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, 99, (1, 60), generator=generator)
    for name, (language_model, text_sizes) in ROTARY.items():
        model, folder = tiny_model("clip", language_model, text_sizes=text_sizes), tmp_path / name.replace(" ", "_")
        model.save_pretrained(folder)
        torch.save(input_ids, folder / "input_ids.pt")
        with torch.no_grad():
            logits[folder] = model(input_ids=input_ids).logits
    run(python, LONG_TEXTS, *logits, home=tmp_path)
    for folder, expected in logits.items():
        torch.testing.assert_close(torch.load(folder / "outputs.pt"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tower", "language_model", "values"), COMBINATIONS)
@pytest.mark.parametrize("python", LINES)
def test_saved_folder_gives_the_same_logits_without_logramed(tmp_path, python, tower, language_model, values):
    model = tiny_model(tower, language_model, **values)
    inputs, logits = save_with_inputs(model, tmp_path / "model")
    loaded_class = run(python, ANSWER, tmp_path / "model", "AutoModelForImageTextToText", home=tmp_path)
    assert loaded_class == "transformers_modules LoGraMedForConditionalGeneration"
    found, sequence = torch.load(tmp_path / "model" / "outputs.pt")
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(sequence, model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None))


@pytest.mark.parametrize(
    ("python", "auto_class"),
    [
        pytest.param(sys.executable, "AutoModel", id="AutoModel"),
        pytest.param(FOUR, "AutoModel", id="AutoModel-4.57", marks=needs_four),
        pytest.param(FOUR, "AutoModelForVision2Seq", id="AutoModelForVision2Seq-4.57", marks=needs_four),
    ],
)
def test_auto_classes_give_the_generating_class(tmp_path, python, auto_class):
    _, logits = save_with_inputs(tiny_model(), tmp_path / "model")
    loaded_class = run(python, ANSWER, tmp_path / "model", auto_class, home=tmp_path)
    assert loaded_class.endswith("LoGraMedForConditionalGeneration")
    torch.testing.assert_close(torch.load(tmp_path / "model" / "outputs.pt")[0], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("python", LINES)
def test_folder_saved_again_by_remote_code_is_complete(tmp_path, python):
    model = tiny_model("siglip", "qwen2")
    _, logits = save_with_inputs(model, tmp_path / "first")
    tiny_processor().save_pretrained(tmp_path / "first")
    run(python, SAVE_AGAIN, tmp_path / "first", tmp_path / "second", home=tmp_path)
    torch.save(tiny_inputs(model, num_images=2), tmp_path / "second" / "inputs.pt")
    run(sys.executable, ANSWER, tmp_path / "second", "AutoModelForImageTextToText", home=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "second" / "outputs.pt")[0], logits, rtol=1e-5, atol=1e-5)
    names = [sorted(weights(tmp_path / folder)) for folder in ("first", "second")]
    assert names[0] == names[1]


@pytest.mark.parametrize("python", LINES)
@pytest.mark.parametrize("values", [{}, {"image_token_pooling": 3, "vision_sizes": {"patch_size": 2}}])
def test_pipeline_answers_from_a_saved_folder(tmp_path, python, values):
    model = tiny_model(text_sizes={"vocab_size": 84}, **values)
    processor = tiny_processor(model.config.num_image_tokens)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    answer = json.loads(run(python, PIPELINE, tmp_path / "model", home=tmp_path))
    from PIL import Image

    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    image = Image.new("RGB", (20, 9), (200, 20, 90))
    inputs = processor(images=[image], text=[prompt], return_tensors="pt", add_special_tokens=False)
    sequence = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    expected = processor.decode(sequence[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip() == expected.strip()


def test_import_registers_all_auto_classes(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for auto_class in (
        transformers.AutoModel,
        transformers.AutoModelForImageTextToText,
        logramed.AutoModelForVision2Seq,
    ):
        assert type(auto_class.from_pretrained(tmp_path)) is LoGraMedForConditionalGeneration
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is logramed.LoGraMedConfig


def test_vision2seq_class_is_the_libraries_own_where_it_has_one():
    assert logramed.AutoModelForVision2Seq is getattr(
        transformers, "AutoModelForVision2Seq", logramed.AutoModelForVision2Seq
    )
    assert logramed.AutoModelForVision2Seq.__name__ == "AutoModelForVision2Seq"


def weights(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_files_carry_the_weight_names_of_llava(tmp_path, tower):
    tiny_model(tower).save_pretrained(tmp_path)
    names = weights(tmp_path)
    assert "language_model.model.embed_tokens.weight" in names
    assert "language_model.lm_head.weight" in names
    assert "multi_modal_projector.linear_1.weight" in names
    assert not any("graph" in name for name in names)
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names


def test_missing_weight_is_an_error_that_names_it(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    del kept["vision_tower.vision_model.embeddings.class_embedding"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights of the model are missing .*vision_tower.*class_embedding"):
        LoGraMedForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("python", LINES)
def test_expanded_prompts_keep_their_images(tmp_path, python):
    tiny_model(text_sizes={"vocab_size": 84}, seed=3).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    found = json.loads(run(python, EXPAND, tmp_path / "model", home=tmp_path).splitlines()[-1])
    assert found.pop("other order") > 1e-3
    assert max(found.values()) < 1e-5, found
