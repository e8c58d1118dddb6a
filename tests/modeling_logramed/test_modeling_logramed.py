import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

from logramed import LoGraMedForConditionalGeneration, LoGraMedProcessor, configuration_logramed
from logramed.modeling_logramed import pool_patches
from logramed.trainer.build_model import build_processor
from tests.tiny import tiny_tokenizer
from tests.tiny_models import LANGUAGE_MODELS, TOWERS, tiny_config, tiny_inputs, tiny_model


PAIRS = [("clip", "llama"), ("siglip", "mistral"), ("dinov2", "qwen2")]
CONNECTORS = ["none", "sti", "sci", "dci"]


def logits_of(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


def repeat_rows(inputs, num_rows):
    return {name: value.repeat_interleave(num_rows, dim=0) for name, value in inputs.items()}


@pytest.mark.parametrize(("tower", "language_model"), PAIRS)
def test_logits_equal_those_of_llava_with_the_same_weights(tower, language_model):
    model = tiny_model(tower, language_model)
    llava = llava_with_weights_of(model)
    inputs = tiny_inputs(model, num_images=2)
    assert torch.equal(logits_of(model, **inputs), logits_of(llava, **inputs))


def llava_with_weights_of(model):
    """transformers' own LLaVA of the same parts and weights."""
    config = model.config
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config.vision_config,
            text_config=config.text_config,
            image_token_index=config.image_token_id,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_seq_length=config.num_image_tokens,
        )
    ).eval()
    llava.load_state_dict(model.state_dict())
    return llava


@pytest.mark.parametrize("make", [lambda model: model, llava_with_weights_of])
def test_token_types_are_taken_by_forward_without_effect_and_refused_by_generate(make):
    """As transformers' own LLaVA does it."""
    ours = tiny_model()
    model, inputs = make(ours), tiny_inputs(ours)
    token_types = {"mm_token_type_ids": (inputs["input_ids"] == model.config.image_token_id).long()}
    assert torch.equal(logits_of(model, **inputs, **token_types), logits_of(model, **inputs))
    with pytest.raises(ValueError, match=r"not used by the model: \['mm_token_type_ids'\]"):
        model.generate(**inputs, **token_types, max_new_tokens=2)


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_connector_joins_the_layers_it_names(tower, connector):
    # Six layers: a third and two thirds of the depth end at hidden states 1 and 3, the halves are 0 to 2 and 3 to 5.
    model = tiny_model(tower, vision_sizes={"num_hidden_layers": 6}, dense_connector=connector)
    pixel_values = tiny_inputs(model, num_images=2)["pixel_values"]
    with torch.no_grad():
        states = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        states = [state[:, 0 if tower == "siglip" else 1 :] for state in states]
        pooled = [states[layer].mean(dim=1, keepdim=True) for layer in (1, 3)]  # 4 tokens are one, incomplete, group
        joined = {
            "none": states[-2],
            "sti": torch.cat([states[-2], *pooled], dim=1),
            "sci": torch.cat([states[-2], states[1], states[3]], dim=2),
            "dci": torch.cat([states[-2], sum(states[:3]) / 3, sum(states[3:6]) / 3], dim=2),
        }[connector]
        projector = model.model.multi_modal_projector
        expected = projector.linear_2(torch.nn.functional.gelu(projector.linear_1(joined)))
        outputs = model(**tiny_inputs(model, num_images=2))
    assert model.config.num_image_tokens == expected.shape[1] == (6 if connector == "sti" else 4)
    torch.testing.assert_close(outputs.image_hidden_states, expected.flatten(0, 1))


@pytest.mark.parametrize(("connector", "layers"), [("sti", (7, 15)), ("sci", (7, 15)), ("dci", tuple(range(24)))])
def test_connector_takes_the_layers_of_the_release_from_a_tower_of_24(connector, layers):
    assert tiny_config(vision_sizes={"num_hidden_layers": 24}, dense_connector=connector).connected_layers == layers


def test_register_tokens_are_left_out_with_the_class_token():
    from transformers.models.dinov2_with_registers.configuration_dinov2_with_registers import (
        Dinov2WithRegistersConfig,
    )

    tower = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=8, patch_size=4
    )
    model = LoGraMedForConditionalGeneration(
        configuration_logramed.LoGraMedConfig(tower, LANGUAGE_MODELS["llama"](), image_token_index=4)
    ).eval()
    inputs = tiny_inputs(model)
    with torch.no_grad():
        states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        expected = model.model.multi_modal_projector.linear_1(states[:, 5:])
        seen = []
        model.model.multi_modal_projector.linear_1.register_forward_hook(lambda *call: seen.append(call[2]))
        model(**inputs)
    assert model.config.num_image_tokens == 4
    torch.testing.assert_close(seen[0], expected)


def test_linear_projector_is_one_linear_map():
    model = tiny_model(projector_type="linear")
    projector = model.model.multi_modal_projector
    features = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    expected = features @ projector.linear_1.weight.T + projector.linear_1.bias
    torch.testing.assert_close(projector(features), expected)
    assert [name for name, _ in projector.named_parameters()] == ["linear_1.weight", "linear_1.bias"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dense_connector": "dense"}, r"`dense_connector` must be one of none, sti, sci, dci; got 'dense'"),
        ({"projector_type": "mlp"}, r"`projector_type` must be one of mlp2x_gelu, linear"),
        (
            {"tower": "siglip", "vision_feature_select_strategy": "default"},
            r"'siglip_vision_model' has none: use 'full'",
        ),
        ({"vision_feature_layer": [-2, -1]}, r"must be one integer; got \[-2, -1\]"),
        ({"vision_feature_layer": 4}, r"`vision_feature_layer=4` is not among the hidden states 0 to 3"),
        ({"image_token_pooling": 3}, r"`image_token_pooling` must be .* integer from 1 to 2, .*; got 3"),
        ({"image_token_pooling": 0}, r"`image_token_pooling` must be .* integer from 1 to 2, .*; got 0"),
        ({"image_token_pooling": 2.0}, r"`image_token_pooling` must be .* integer from 1 to 2, .*; got 2\.0"),
        ({"image_token_pooling": True}, r"`image_token_pooling` must be .* integer from 1 to 2, .*; got True"),
        ({"image_token_pooling": 1, "dense_connector": "sti"}, r"does not go with `dense_connector='sti'`"),
        (
            {"image_token_pooling": 1, "vision_feature_select_strategy": "full"},
            r"does not go with `vision_feature_select_strategy='full'`, which keeps",
        ),
    ],
)
def test_config_refuses_what_does_not_fit(values, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**values)


def test_clip_configuration_of_both_towers_gives_its_vision_part():
    from transformers.models.clip.configuration_clip import CLIPConfig

    both = CLIPConfig(vision_config=TOWERS["clip"]().to_dict())
    assert configuration_logramed.LoGraMedConfig(both).vision_config.hidden_size == 16


@pytest.mark.parametrize("num_placeholders", [0, 1, 3])
def test_forward_refuses_another_number_of_image_tokens_than_images_give(num_placeholders):
    model = tiny_model()
    inputs = tiny_inputs(model, num_images=2)
    text = tiny_inputs(model, num_images=num_placeholders)["input_ids"]
    words = rf"holds {4 * num_placeholders} image tokens, but `pixel_values` gives 8, 4 for each image"
    with pytest.raises(ValueError, match=words):
        model(input_ids=text, pixel_values=inputs["pixel_values"])


def test_forward_refuses_image_tokens_without_images():
    model = tiny_model()
    with pytest.raises(ValueError, match="holds 4 image tokens, but without `pixel_values` there are 0"):
        model(input_ids=tiny_inputs(model)["input_ids"])


def test_text_alone_is_answered_as_the_language_model_does():
    model = tiny_model()
    input_ids = torch.tensor([[1, 7, 8, 9]])
    with torch.no_grad():
        expected = model.lm_head(model.model.language_model(input_ids).last_hidden_state)
    assert torch.equal(logits_of(model, input_ids=input_ids), expected)
    assert model.generate(input_ids, max_new_tokens=3, do_sample=False).shape == (1, 7)


def test_inputs_embeds_with_images_equal_input_ids():
    model = tiny_model()
    inputs = tiny_inputs(model)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    logits = logits_of(model, inputs_embeds=embeddings, pixel_values=inputs["pixel_values"])
    torch.testing.assert_close(logits, logits_of(model, **inputs))


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
@pytest.mark.parametrize(("tower", "language_model"), PAIRS)
def test_generate_gives_the_same_answer_with_any_cache(tower, language_model, options):
    model = tiny_model(tower, language_model)
    inputs = tiny_inputs(model, num_images=2)
    # An image token among the answer would stand for an image when the whole text is read again.
    suppressed = [model.config.image_token_id]
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "suppress_tokens": suppressed}
    expected = model.generate(**inputs, **greedy)
    assert torch.equal(model.generate(**inputs, **greedy, **options), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits_of_the_text(side):
    model = tiny_model()
    inputs = tiny_inputs(model)
    padding = torch.zeros(1, 3, dtype=torch.int64)
    order = (lambda text: [padding, text]) if side == "left" else (lambda text: [text, padding])
    padded = {name: torch.cat(order(inputs[name]), dim=1) for name in ("input_ids", "attention_mask")}
    if side == "left":
        padded["position_ids"] = (padded["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    logits = logits_of(model, **padded, pixel_values=inputs["pixel_values"])
    logits = logits[:, 3:] if side == "left" else logits[:, :-3]
    torch.testing.assert_close(logits, logits_of(model, **inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [{}, {"vision_sizes": {"patch_size": 2}, "image_token_pooling": 3}])
def test_left_padded_batch_generates_what_each_row_does_alone(values):
    model = tiny_model(**values)
    rows = [tiny_inputs(model, num_images=count, seed=count) for count in (1, 2)]
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    alone = [model.generate(**row, **greedy)[0, -5:] for row in rows]
    width = max(row["input_ids"].shape[1] for row in rows)
    batch = {
        name: torch.cat([torch.nn.functional.pad(row[name], (width - row[name].shape[1], 0)) for row in rows])
        for name in ("input_ids", "attention_mask")
    }
    batch["pixel_values"] = torch.cat([row["pixel_values"] for row in rows])
    assert torch.equal(model.generate(**batch, **greedy)[:, -5:], torch.stack(alone))


def test_eager_and_sdpa_attention_agree(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    models = [
        LoGraMedForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=name)
        for name in ("eager", "sdpa")
    ]
    inputs = tiny_inputs(models[0])
    eager, sdpa = (logits_of(model, **inputs) for model in models)
    assert models[1].model.language_model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(eager, sdpa, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = tiny_inputs(model)
        model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == 4, -100)).loss.backward()
        gradients.append(model.model.vision_tower.get_input_embeddings().weight.grad.clone())
        gradients.append(model.lm_head.weight.grad.clone())
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[:2], gradients[2:])


@pytest.mark.parametrize("options", [{"device_map": "cpu"}, {"device_map": "auto"}, {"dtype": torch.bfloat16}])
def test_from_pretrained_takes_device_map_and_dtype(tmp_path, options):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    inputs = tiny_inputs(model)
    loaded = LoGraMedForConditionalGeneration.from_pretrained(tmp_path, **options)
    assert loaded.dtype == options.get("dtype", torch.float32)
    logits = logits_of(loaded, **inputs).float()
    tolerance = {"rtol": 0, "atol": 0.5} if "dtype" in options else {}
    torch.testing.assert_close(logits, logits_of(model, **inputs), **tolerance)


def test_dtype_auto_is_that_of_the_file(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert LoGraMedForConditionalGeneration.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_weights_load_in_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes", reason="install logramed[quantization] for 4-bit loading")
    from transformers import BitsAndBytesConfig

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 4}
    model = tiny_model(text_sizes=sizes, vision_sizes={"hidden_size": 64, "intermediate_size": 64})
    model.save_pretrained(tmp_path)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    quantized = LoGraMedForConditionalGeneration.from_pretrained(tmp_path, quantization_config=four_bits)
    inputs = tiny_inputs(model)
    assert quantized.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    expected, found = logits_of(model, **inputs), logits_of(quantized, **inputs).float()
    assert torch.nn.functional.cosine_similarity(expected.flatten(), found.flatten(), dim=0) > 0.9
    assert quantized.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == 12


POOLED = [("clip", "none"), ("siglip", "dci"), ("dinov2", "sci"), ("dinov2", "dci")]
FOUR_PATCHES = {"patch_size": 2, "num_hidden_layers": 6}  # on a side


@pytest.mark.parametrize(("tower", "connector"), POOLED)
def test_pooled_tokens_are_means_of_two_by_two_patches(tower, connector):
    model = tiny_model(tower, vision_sizes=FOUR_PATCHES, dense_connector=connector, image_token_pooling=2)
    inputs = tiny_inputs(model, num_images=2)
    with torch.no_grad():
        states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        states = [state[:, 0 if tower == "siglip" else 1 :] for state in states]
        joined = {
            "none": states[-2],
            "sci": torch.cat([states[-2], states[1], states[3]], dim=2),
            "dci": torch.cat([states[-2], sum(states[:3]) / 3, sum(states[3:6]) / 3], dim=2),
        }[connector]
        # Patches are numbered row by row: 0 1 2 3, then 4 5 6 7, and so on.
        quarters = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
        pooled = torch.stack([joined[:, patches].mean(dim=1) for patches in quarters], dim=1)
        projector = model.model.multi_modal_projector
        expected = projector.linear_2(torch.nn.functional.gelu(projector.linear_1(pooled)))
        outputs = model(**inputs)
    assert model.config.num_image_tokens == 4
    torch.testing.assert_close(outputs.image_hidden_states, expected.flatten(0, 1))


def test_pooling_to_a_size_that_does_not_divide_the_grid_averages_regions_that_overlap():
    features = torch.arange(16.0).reshape(1, 16, 1)  # row r, column c holds 4 r + c
    # Of 4 rows, regions 0 to 2 hold rows (0, 1), (1, 2), (2, 3), with the means 0.5, 1.5 and 2.5; columns likewise.
    expected = [4 * row + column for row in (0.5, 1.5, 2.5) for column in (0.5, 1.5, 2.5)]
    assert pool_patches(features, 4, 3).flatten().tolist() == expected


@pytest.mark.parametrize(("tower", "connector"), POOLED)
def test_pooling_to_the_size_of_the_grid_changes_no_logits(tower, connector):
    plain, pooled = (
        tiny_model(tower, vision_sizes=FOUR_PATCHES, dense_connector=connector, image_token_pooling=pooling)
        for pooling in (None, 4)
    )
    inputs = tiny_inputs(plain, num_images=2)
    assert torch.equal(logits_of(pooled, **inputs), logits_of(plain, **inputs))


@pytest.mark.parametrize("pooling", [1, 2, 3, 4])
def test_an_image_takes_the_pooled_number_of_tokens_in_the_prompt(tmp_path, pooling):
    model = tiny_model(vision_sizes=FOUR_PATCHES, text_sizes={"vocab_size": 84}, image_token_pooling=pooling)
    build_processor(model.config, tiny_tokenizer(), {}).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    processor = LoGraMedProcessor.from_pretrained(tmp_path)
    loaded = LoGraMedForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.image_token_pooling == pooling
    inputs = processor(
        text=["what is <image> and <image>"], images=[Image.new("RGB", (20, 9))] * 2, return_tensors="pt"
    )
    assert (inputs["input_ids"] == loaded.config.image_token_id).sum() == 2 * pooling**2
    assert torch.equal(logits_of(loaded, **inputs), logits_of(model, **inputs))


def test_pooling_asked_for_in_loading_is_checked_too(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = LoGraMedForConditionalGeneration.from_pretrained(tmp_path, image_token_pooling=1)
    assert loaded(**tiny_inputs(loaded)).image_hidden_states.shape == (1, 32)
    with pytest.raises(ValueError, match=r"integer from 1 to 2, .*; got 3"):
        LoGraMedForConditionalGeneration.from_pretrained(tmp_path, image_token_pooling=3)
