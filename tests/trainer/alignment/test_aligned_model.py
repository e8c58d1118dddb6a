"""One pass of a model gives what alignment needs, and the gradients of a plain computation, in 13 families."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
)

from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.alignment.aligned_model import AlignedModel, choose_text_layout, encode_texts, refuse_unalignable
from logramed.trainer.alignment.alignment_head import AlignmentHead
from logramed.trainer.alignment.graph_network import GraphNetwork
from tests.tiny_models import tiny_inputs, tiny_model


PAPER = AlignmentConfig(alignment_preset="paper")
FAMILIES_FILE = Path(__file__).parents[4] / "shared" / "vlm_families.py"
IMAGE = 4
FAMILIES = (
    "LLaVA", "LLaVA-NeXT", "LLaVA-OneVision", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "Idefics3", "SmolVLM",
    "Gemma3 (MedGemma)", "PaliGemma", "InternVL", "Mistral3", "Pixtral",
)  # fmt: skip
LAYOUTS = {"Qwen2-VL": "packed_four_axes", "Qwen2.5-VL": "packed_four_axes", "PaliGemma": "padded_both_ways"}
BY_SAMPLE = ("Idefics3", "SmolVLM")  # their images come as (batch_size, num_images, ...)


@pytest.fixture(scope="module")
def families():
    if not FAMILIES_FILE.is_file():
        pytest.skip(f"{FAMILIES_FILE} is not there: it builds tiny models of the families.")
    specification = importlib.util.spec_from_file_location("vlm_families", FAMILIES_FILE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    torch.manual_seed(0)
    return {name: (model, inputs) for name, model, inputs in module.families()}


def text_nodes(texts, image_sample):
    """The `nodes` of texts without special tokens, made by hand: each of `texts` a list of token ids."""
    longest, num_tokens = max(map(len, texts)), sum(map(len, texts))
    padded = torch.zeros(len(texts), longest, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, text in enumerate(texts):
        padded[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    return {
        "text_input_ids": padded,
        "text_attention_mask": mask,
        "packed_input_ids": torch.tensor([[token for text in texts for token in text]]),
        "packed_position_ids": torch.tensor([[place for text in texts for place in range(len(text))]]),
        "packed_places": torch.arange(num_tokens),
        "padded_places": torch.tensor([row * longest + n for row, text in enumerate(texts) for n in range(len(text))]),
        "text_of_token": torch.tensor([row for row, text in enumerate(texts) for _ in text]),
        "image_sample": image_sample,
        "groups": torch.arange(len(texts) // 2),
        "answer_keys": torch.arange(len(texts) // 2),
    }


def family_batch(name, model, inputs):
    """Two samples: the images of a family's inputs and a few words, labels for these, and their nodes."""
    with torch.no_grad():
        features = model.base_model.get_image_features(**inputs, return_dict=True).pooler_output
    parts = [part.flatten(0, -2) for part in features]
    shares = [parts[:1], parts[1:]]
    rows = [
        [8, *(token for part in share for token in [*[IMAGE] * len(part), 9]), 10 + row]
        for row, share in enumerate(shares)
    ]
    longest = max(map(len, rows))
    input_ids = torch.tensor([row + [11] * (longest - len(row)) for row in rows])
    labels = torch.where(input_ids == IMAGE, -100, input_ids)
    extra = {}
    if "image_grid_thw" in inputs:
        extra = {"mm_token_type_ids": (input_ids == IMAGE).int()}
    if name.startswith(("Gemma3", "PaliGemma")):
        extra = {"token_type_ids": (input_ids == IMAGE).long()}
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels, **inputs, **extra}
    nodes = text_nodes([[20, 21, 22, 23], [24, 25], [26, 27, 28], [29]], (input_ids == IMAGE).nonzero()[:, 0])
    return batch, nodes


def plain_features(model, batch, nodes, inputs):
    """The node features as a loop computes them: every text alone, every sample's image tokens averaged."""
    image_features = model.base_model.get_image_features(**inputs, return_dict=True).pooler_output
    parts = [part.flatten(0, -2) for part in image_features]
    image = torch.stack([parts[0].mean(0), torch.cat(parts[1:]).mean(0)])
    means = []
    for ids, mask in zip(nodes["text_input_ids"], nodes["text_attention_mask"], strict=True):
        hidden = model.get_decoder()(input_ids=ids[mask.bool()].unsqueeze(0), use_cache=False).last_hidden_state
        means.append(hidden[0].mean(0))
    return {"image": image, "answer": torch.stack(means[:2]), "extended": torch.stack(means[2:])}


def gradients(model, features):
    """Of a loss that has the features of all modalities meet."""
    model.zero_grad()
    directions = {name: torch.nn.functional.normalize(values, dim=-1) for name, values in features.items()}
    loss = (directions["image"] @ directions["answer"].T)[0, 1] + (
        directions["extended"] @ directions["image"].T
    ).sum()
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert found
    return {name: gradient.clone() for name, gradient in found.items() if gradient.abs().max() > 0}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_a_plain_computation_one_by_one(families, name):
    model, inputs = families[name]
    model = model.double().eval()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    batch, nodes = family_batch(name, model, inputs)
    aligned = AlignedModel(model, config=PAPER)
    output = aligned(nodes=nodes, **batch)
    assert aligned._text_layout == LAYOUTS.get(name, "packed")
    expected = gradients(model, plain_features(model, batch, nodes, inputs))
    found = gradients(model, output.node_features)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(
            found[key], gradient, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_one_pass_gives_the_models_own_loss_and_logits(families, name):
    model, inputs = families[name]
    model = model.float().eval()
    batch, nodes = family_batch(name, model, inputs)
    with torch.no_grad():
        expected = model(**batch)
        output = AlignedModel(model, config=PAPER)(nodes=nodes, **batch)
        with_logits = AlignedModel(model, config=PAPER)(nodes=nodes, output_logits=True, **batch)
    loss = -output.log_probs.sum() / output.label_mask.sum()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(with_logits.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(with_logits.last_hidden_state, output.last_hidden_state, rtol=1e-5, atol=1e-5)
    for figure in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(with_logits[figure].float(), output[figure].float(), rtol=1e-4, atol=1e-4)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
DECODERS = {
    "llama": (SIZES, "packed"),
    "mistral": ({**SIZES, "num_key_value_heads": 2, "sliding_window": 2}, "packed"),
    "qwen2": ({**SIZES, "num_key_value_heads": 2}, "packed"),
    "phi": (SIZES, "packed"),
    "opt": ({**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 32}, "padded"),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64}, "padded"),
    "falcon": ({**SIZES, "alibi": True}, "padded"),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 64}, "padded"),
    "mamba": ({**SIZES, "state_size": 4}, "padded"),
    "recurrent_gemma": (
        {**SIZES, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "num_key_value_heads": 1},
        "padded",
    ),
    "falcon_h1": (
        {
            **SIZES,
            "num_key_value_heads": 2,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 2,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
        },
        "padded",
    ),
    "lfm2": ({**SIZES, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}, "padded"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_texts_are_encoded_as_alone_by_every_kind_of_language_model(name, caplog):
    sizes, layout = DECODERS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    decoder = AutoModel.from_config(config).eval()
    for weight in decoder.parameters():  # larger than the usual start, so that texts that reach each other show
        torch.nn.init.normal_(weight, std=0.2)
    assert choose_text_layout(decoder) == layout
    assert ("encoded in a row of its own" in caplog.text) == (layout == "padded")
    texts = [[20, 21, 22, 23, 33], [24, 25], [26, 27, 28], [29]]
    nodes = text_nodes(texts, torch.zeros(0, dtype=torch.int64))
    found = encode_texts(decoder, nodes, layout)
    alone = [decoder(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0] for text in texts]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_the_choice_of_a_layout_leaves_training_mode_as_it_was():
    decoder = tiny_model().get_decoder().train()
    choose_text_layout(decoder)
    assert all(module.training for module in decoder.modules())


def test_images_that_are_no_tokens_are_refused_with_the_reason():
    text = {**SIZES, "cross_attention_layers": [1], "num_key_value_heads": 2, "pad_token_id": 0}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2, "image_size": 8,
              "patch_size": 4, "vision_output_dim": 64, "intermediate_layers_indices": [0]}  # fmt: skip
    mllama = MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=text))
    with pytest.raises(
        ValueError, match=r"MllamaForConditionalGeneration cannot be aligned: it has no `get_image_feat"
    ):
        refuse_unalignable(mllama)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot be aligned"):
        refuse_unalignable(LlamaForCausalLM(LlamaConfig(**SIZES)))
    refuse_unalignable(tiny_model())
    prompted = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match=r"its adapter puts virtual tokens before the text"):
        refuse_unalignable(prompted)


def test_attributes_and_saving_are_the_models(tmp_path):
    model = tiny_model()
    aligned = AlignedModel(model, GraphNetwork(32))
    assert aligned.config is model.config
    assert aligned.generate.__self__ is model
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = aligned.no_such_thing
    aligned.save_pretrained(tmp_path / "alone")
    aligned.save_pretrained(tmp_path / "gathered", aligned.state_dict())
    inputs = tiny_inputs(model)
    for folder in ("alone", "gathered"):
        assert not any("graph" in path.name for path in (tmp_path / folder).iterdir())
        loaded = type(model).from_pretrained(tmp_path / folder)
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_the_graph_network_is_saved_beside_the_model_and_loaded_again(tmp_path):
    model, other = (AlignedModel(tiny_model(), GraphNetwork(32)) for _ in range(2))
    model.save_alignment(tmp_path, model.state_dict())
    other.load_alignment(tmp_path)
    state = model.graph_network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in other.graph_network.state_dict().items())
    reason = r"alignment.safetensors does not fit this run's arguments: it lacks .*head.* and has \['graph_network"
    with pytest.raises(ValueError, match=reason):
        AlignedModel(tiny_model(), head=AlignmentHead(32, 16)).load_alignment(tmp_path)
    with pytest.raises(ValueError, match=r"has no alignment.safetensors"):
        other.load_alignment(tmp_path / "nowhere")


def test_the_readme_has_every_family_and_whose_texts_are_padded():
    readme = (Path(__file__).parents[3] / "trainer" / "README.md").read_text()
    rows = re.findall(r"exact resuming \| (.*) \|\n\| gradient only \| (.*) \|", readme)
    assert sorted(", ".join(*rows).split(", ")) == sorted(["LoGra-Med", *FAMILIES])
    assert [family for family, layout in LAYOUTS.items() if layout.startswith("padded")] == ["PaliGemma"]
    assert "Texts of nodes are packed in all of these but PaliGemma" in readme
