import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PhiConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPModel

from logramed import AutoModelForVision2Seq, LoGraMedProcessor
from logramed.chat_templates_logramed import DEFAULT_CHAT_TEMPLATE
from logramed.trainer.build_model import join_models, main, train_tokenizer, training_texts
from tests.tiny import tiny_tokenizer
from tests.tiny_models import LANGUAGE_MODELS, TOWERS


@pytest.fixture
def parts(tmp_path):
    """Folders of a CLIP tower with its image settings and of a Llama whose tokenizer has no image or padding token."""
    torch.manual_seed(0)
    AutoModel.from_config(TOWERS["clip"]()).save_pretrained(tmp_path / "vision")
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }
    (tmp_path / "vision" / "preprocessor_config.json").write_text(json.dumps(settings))
    tokenizer = tiny_tokenizer()
    vocabulary = {name: index for name, index in tokenizer.get_vocab().items() if name not in ("<image>", "<pad>")}
    ordered = sorted(vocabulary, key=vocabulary.get)
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(ordered)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    plain.save_pretrained(tmp_path / "language")
    config = LANGUAGE_MODELS["llama"](vocab_size=len(plain))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "language")
    return str(tmp_path / "vision"), str(tmp_path / "language")


def test_joined_model_has_the_weights_of_its_parts(parts):
    vision, language = parts
    model, processor = join_models(vision, language)
    tower, text = AutoModel.from_pretrained(vision), AutoModelForCausalLM.from_pretrained(language)
    for name, value in tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], value)
    rows = text.config.vocab_size
    assert torch.equal(model.lm_head.weight[:rows], text.lm_head.weight)
    assert model.lm_head.weight.shape[0] == model.config.text_config.vocab_size == -(-(rows + 2) // 64) * 64
    input_ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids).logits[..., :rows], text(input_ids).logits)
    assert processor.image_token_id == model.config.image_token_id == rows
    assert processor.num_image_tokens == 4
    assert processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert processor.tokenizer.pad_token_id == model.generation_config.pad_token_id == rows + 1


def test_new_weights_are_drawn_with_the_seed_and_none_is_left_empty(parts):
    first, again, other = (join_models(*parts, seed=seed)[0] for seed in (0, 0, 1))
    name = "model.multi_modal_projector.linear_1.weight"
    weight = first.get_parameter(name)
    assert weight.abs().max() > 0
    assert torch.isfinite(weight).all()
    assert torch.equal(weight, again.get_parameter(name))
    assert not torch.equal(weight, other.get_parameter(name))


@pytest.mark.parametrize("connector", ["none", "dci"])
def test_command_writes_a_folder_that_answers(parts, tmp_path, capsys, connector):
    output = tmp_path / "joined"
    arguments = ["--vision", parts[0], "--language", parts[1], "--output", str(output), "--dense_connector", connector]
    assert main(arguments) == 0
    assert "4 tokens per image" in capsys.readouterr().out
    model, processor = AutoModelForVision2Seq.from_pretrained(output), LoGraMedProcessor.from_pretrained(output)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what organ is shown"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[Image.new("RGB", (8, 8))], text=[prompt], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] <= inputs["input_ids"].shape[1] + 2
    width = model.model.multi_modal_projector.linear_1.in_features
    assert width == (48 if connector == "dci" else 16)


def test_command_pools_image_tokens_in_model_and_processor(parts, tmp_path, capsys):
    output = tmp_path / "joined"
    arguments = ["--vision", parts[0], "--language", parts[1], "--output", str(output), "--image_token_pooling", "1"]
    assert main(arguments) == 0
    assert "1 tokens per image" in capsys.readouterr().out
    assert AutoModelForVision2Seq.from_pretrained(output).config.image_token_pooling == 1
    assert LoGraMedProcessor.from_pretrained(output).num_image_tokens == 1


def test_command_joins_a_tower_with_a_new_language_model_and_its_tokenizer(parts, tmp_path):
    rows = [
        {"id": "1", "conversations": [{"from": "human", "value": "Which organ?"}, {"from": "gpt", "value": "Lung"}]}
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    output = tmp_path / "joined"
    arguments = ["--vision", parts[0], "--text_config", json.dumps({"model_type": "llama", **sizes})]
    arguments += ["--tokenizer_data", str(tmp_path / "rows.json"), "--vocab_size", "300", "--seed", "3"]
    assert main([*arguments, "--output", str(output)]) == 0
    model, processor = AutoModelForVision2Seq.from_pretrained(output), LoGraMedProcessor.from_pretrained(output)
    for name, value in AutoModel.from_pretrained(parts[0]).state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], value)
    tokenizer = processor.tokenizer
    assert model.config.text_config.vocab_size == len(tokenizer) <= 300
    assert len(tokenizer.tokenize("Which organ?")) < len(tokenizer.tokenize("Whose bones?"))
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    main([*arguments, "--output", str(tmp_path / "again")])
    again = AutoModelForVision2Seq.from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "give --language, or --text_config and --tokenizer_data"),
        (["--language", "a", "--text_config", "{}"], "give --language, or --text_config and --tokenizer_data"),
        (["--text_config", "{}"], "--text_config and --tokenizer_data go together"),
    ],
)
def test_command_wants_one_language_model(tmp_path, capsys, given, words):
    with pytest.raises(SystemExit):
        main(["--vision", "tower", "--output", str(tmp_path / "joined"), *given])
    assert words in capsys.readouterr().err


CHATML = """{% for message in messages %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def test_language_models_own_template_is_kept_with_images_and_its_end_of_turn(parts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(parts[1])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(parts[1])
    model, processor = join_models(*parts)
    model.save_pretrained(tmp_path / "joined")
    processor.save_pretrained(tmp_path / "joined")
    processor = LoGraMedProcessor.from_pretrained(tmp_path / "joined")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what organ is shown"}]}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|im_start|>user\n<image>\nwhat organ is shown<|im_end|>\n<|im_start|>assistant\n"
    )
    plain = [{"role": "user", "content": "what organ is shown"}]
    assert processor.apply_chat_template(plain) == tokenizer.apply_chat_template(plain, tokenize=False)
    end = AutoModelForVision2Seq.from_pretrained(tmp_path / "joined").generation_config.eos_token_id
    assert {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")} <= set(end)


def test_biases_of_the_head_are_kept(parts, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    phi = AutoModelForCausalLM.from_config(PhiConfig(vocab_size=99, **sizes))
    torch.nn.init.normal_(phi.lm_head.bias)
    phi.save_pretrained(parts[1])
    model, _ = join_models(*parts)
    assert torch.equal(model.lm_head.bias[:99], phi.lm_head.bias)
    model.save_pretrained(tmp_path / "joined")
    again = AutoModelForVision2Seq.from_pretrained(tmp_path / "joined")
    assert torch.equal(again.lm_head.bias, model.lm_head.bias)


def test_unknown_weights_are_refused_but_for_an_older_graph_network(parts, tmp_path):
    model, _ = join_models(*parts)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {**weights, "graph_network.conv1.weight": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    AutoModelForVision2Seq.from_pretrained(tmp_path)
    save_file({**weights, "adapter.weight": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights there are unknown to the model \(adapter.weight\)"):
        AutoModelForVision2Seq.from_pretrained(tmp_path)


def test_command_refuses_a_folder_that_is_not_empty(parts, capsys):
    with pytest.raises(SystemExit):
        main(["--vision", parts[0], "--language", parts[1], "--output", parts[0]])
    assert "is not empty" in capsys.readouterr().err


def test_image_settings_that_lack_the_towers_mean_are_refused(parts):
    (Path(parts[0]) / "preprocessor_config.json").write_text('{"image_std": [0.5, 0.5, 0.5]}')
    with pytest.raises(ValueError, match=r"image settings of .*vision have no image_mean"):
        join_models(*parts)


def test_vision_part_of_a_larger_model_is_taken(parts, tmp_path):
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    both = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=TOWERS["clip"]().to_dict()))
    both.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    model, _ = join_models(str(tmp_path / "clip"), parts[1])
    expected = both.vision_model.state_dict()["embeddings.patch_embedding.weight"]
    name = "embeddings.patch_embedding.weight"
    found = next(value for key, value in model.model.vision_tower.state_dict().items() if key.endswith(name))
    assert torch.equal(found, expected)


def test_tokenizer_writes_any_text_and_keeps_special_tokens_whole():
    tokenizer = train_tokenizer(["Is there a lesion?", "yes"], vocab_size=300)
    text = "Größe 5 µm — <image> ok"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("<image>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<image>")]
    assert len(tokenizer) <= 300


def test_a_new_tokenizer_writes_the_template_and_the_start_of_an_answer_in_whole_words():
    messages = [message("user", ("image", None), ("text", "Which organ?")), message("assistant", ("text", "Lung"))]
    rows = [{"messages": messages, "extended_answers": ["The lung is shown."]}] * 3
    tokenizer = train_tokenizer(training_texts(rows), vocab_size=400)
    text = tokenizer.apply_chat_template(messages, chat_template=DEFAULT_CHAT_TEMPLATE, tokenize=False)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert " ".join(tokens) == "<s> USER : Ġ <image> Ċ Which Ġorgan ? ĠASSISTANT : ĠLung </s>"
    assert tokenizer.tokenize(" lung") == ["Ġlung"]  # of the extended answer


def message(role, *parts):
    """As `datasets` has it: every part with every key."""
    return {"role": role, "content": [{"type": kind, "text": text} for kind, text in parts]}


def test_llava_loads_the_joined_folder_weights(parts, tmp_path):
    model, _ = join_models(*parts)
    model.save_pretrained(tmp_path / "joined")
    config = LlavaConfig(
        vision_config=TOWERS["clip"](),
        text_config=model.config.text_config,
        image_token_index=model.config.image_token_id,
        image_seq_length=4,
    )
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "joined", config=config)
    assert torch.equal(llava.lm_head.weight, model.lm_head.weight)
    projectors = [part.model.multi_modal_projector.linear_1.weight for part in (llava, model)]
    assert torch.equal(*projectors)
