"""The small originals are what their docstrings say, against transformers and by hand."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.trainer.conversion.original_checkpoints import checkpoint_config, checkpoint_state
from tests.trainer.conversion.original_models import clip_hidden_states, connect, decoder_logits
from tests.trainer.conversion.originals import (
    ADDED_TOKENS,
    BASE_VOCABULARY_SIZE,
    IMAGE_PLACEHOLDER,
    KINDS,
    PATCH_TOKEN_KINDS,
    added_token_id,
    checkpoint_tower,
    original_logits,
    original_token_ids,
    write_checkpoint,
    write_clip,
    write_llama,
)


NUM_PATCHES = 16  # of a small CLIP's image
VOCABULARY_SIZE = BASE_VOCABULARY_SIZE + 4
LAYER_SHAPES = {
    "self_attn.q_proj.weight": [32, 32],
    "self_attn.k_proj.weight": [32, 32],
    "self_attn.v_proj.weight": [32, 32],
    "self_attn.o_proj.weight": [32, 32],
    "mlp.gate_proj.weight": [56, 32],
    "mlp.up_proj.weight": [56, 32],
    "mlp.down_proj.weight": [32, 56],
    "input_layernorm.weight": [32],
    "post_attention_layernorm.weight": [32],
}
GROUPED_SHAPES = {"self_attn.k_proj.weight": [16, 32], "self_attn.v_proj.weight": [16, 32]}
LINEAR_PROJECTOR = {"model.mm_projector.weight": [32, 24], "model.mm_projector.bias": [32]}
TEXTS = ("What is the image?\n### Assistant: lung ### yes", "  two  spaces, 20 \u00b5m\t\u00e9 \u6f22", "a#b ##c ###d")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def mlp_projector(num_channels=24):
    first = {"model.mm_projector.0.weight": [32, num_channels], "model.mm_projector.0.bias": [32]}
    return first | {"model.mm_projector.2.weight": [32, 32], "model.mm_projector.2.bias": [32]}


def graph_network():
    prefix = "model.message_pass_node_features"
    shapes = {"lin_rel.weight": [32, 32], "lin_rel.bias": [32], "lin_root.weight": [32, 32]}
    return {f"{prefix}.conv{number}.{name}": shape for number in (1, 2) for name, shape in shapes.items()}


def decoder_shapes(vocabulary_size, layer=LAYER_SHAPES, has_inv_freq=True):
    buffers = {"self_attn.rotary_emb.inv_freq": [4]} if has_inv_freq else {}
    layers = {f"model.layers.{n}.{name}": shape for n in (0, 1) for name, shape in (layer | buffers).items()}
    rows = {name: [vocabulary_size, 32] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    return layers | rows | {"model.norm.weight": [32]}


def tower_shapes(num_positions=37):
    """Only some names: all of them are compared with transformers'."""
    prefix = "model.vision_tower.vision_tower.vision_model."
    return {
        f"{prefix}embeddings.class_embedding": [24],
        f"{prefix}embeddings.position_embedding.weight": [num_positions, 24],
        f"{prefix}pre_layrnorm.weight": [24],
        f"{prefix}encoder.layers.3.mlp.fc1.weight": [48, 24],
        f"{prefix}post_layernorm.bias": [24],
    }


SHAPES = {
    "llava-med-v1": decoder_shapes(VOCABULARY_SIZE) | LINEAR_PROJECTOR,
    "llava-med-v1-delta": decoder_shapes(VOCABULARY_SIZE) | LINEAR_PROJECTOR,
    "exgra-med": decoder_shapes(VOCABULARY_SIZE) | mlp_projector() | graph_network(),
    "exgra-med-dci": decoder_shapes(VOCABULARY_SIZE) | mlp_projector(72) | graph_network(),
    "exgra-med-sci": decoder_shapes(VOCABULARY_SIZE) | mlp_projector(72) | graph_network(),
    "llava-med-v1.5": decoder_shapes(BASE_VOCABULARY_SIZE, LAYER_SHAPES | GROUPED_SHAPES, has_inv_freq=False)
    | mlp_projector()
    | tower_shapes(),
    "llava-v1.5": decoder_shapes(BASE_VOCABULARY_SIZE) | mlp_projector(),
}


def read_json(path):
    return json.loads(path.read_text())


def read_state(folder):
    """Every tensor of a folder's weight files, found through the index if there is one."""
    indexes = list(folder.glob("*.index.json"))
    names = set(read_json(indexes[0])["weight_map"].values()) if indexes else {"pytorch_model.bin"}
    state = {}
    for name in names:
        read = load_file if name.endswith(".safetensors") else torch.load
        shard = read(folder / name)
        if indexes:
            placed = read_json(indexes[0])["weight_map"]
            assert set(shard) == {tensor for tensor, file in placed.items() if file == name}
        state |= shard
    return state


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(one[name].dtype == other[name].dtype for name in one)


def random_images(generator, num_images=2, size=32):
    return torch.randn(num_images, 3, size, size, generator=generator)


def patch_token_ids(config, num_tokens=NUM_PATCHES):
    """Two rows of text around an image."""
    patch, start, end = (added_token_id(config, token) for token in ADDED_TOKENS[:3])
    return torch.tensor([[1, *text, start, *[patch] * num_tokens, end, 270, 280] for text in ([300, 13], [301, 302])])


def stock_decoder(model_class, config_class, original):
    """Transformers' language model with a checkpoint's weights."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    settings = {name: original.config[name] for name in (*names, "rms_norm_eps")}
    further = {n: original.config[n] for n in ("num_key_value_heads", "sliding_window") if n in original.config}
    rope = {"rope_type": "default", "rope_theta": original.config.get("rope_theta", 10000.0)}
    model = model_class(config_class(**settings, **further, rope_parameters=rope)).eval()
    state = {name: original.state[name].float() for name in model.state_dict()}
    model.load_state_dict(state)
    return model


def stock_projector(original):
    """Torch's modules with a checkpoint's projector, found by its names."""
    prefix = "model.mm_projector."
    state = {name.removeprefix(prefix): t for name, t in original.state.items() if name.startswith(prefix)}
    rows, columns = (state["weight"] if "weight" in state else state["0.weight"]).shape
    module = torch.nn.Linear(columns, rows)
    if "weight" not in state:
        module = torch.nn.Sequential(module, torch.nn.GELU(), torch.nn.Linear(rows, rows))
    module.load_state_dict(state)
    return module


def load_tokenizer(folder, copy):
    """
    Transformers' LLaMA tokenizer of a checkpoint's tokenizer files alone.

    Beside a `config.json` of type "llava", transformers 5.23 reads them as another class, which leaves out the mark of
    the first word.
    """
    copy.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            shutil.copy(folder / name, copy)
    return AutoTokenizer.from_pretrained(copy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["bin", "safetensors"])
def test_files_hold_the_tensors_of_their_kind(tmp_path, kind, weights):
    base = write_llama(tmp_path / "base") if kind == "llava-med-v1-delta" else None
    original = write_checkpoint(tmp_path / kind, kind, base=base, weights=weights, num_shards=3)
    state = read_state(tmp_path / kind)
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    assert shapes.items() >= SHAPES[kind].items()
    assert {name for name in shapes if "vision_tower" not in name} == {n for n in SHAPES[kind] if "vision" not in n}
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert original.config == read_json(original.folder / "config.json")
    index = read_json(next(original.folder.glob("*.index.json")))
    assert index["metadata"]["total_size"] == 4 * sum(tensor.numel() for tensor in state.values())
    if base is None:
        assert_equal_states(state, original.state)


def test_file_names_are_those_of_transformers(tmp_path):
    write_checkpoint(tmp_path / "two", "exgra-med")
    write_checkpoint(tmp_path / "four", "llava-med-v1.5", num_shards=4)
    write_checkpoint(tmp_path / "one", "llava-v1.5", num_shards=1)
    assert sorted(path.name for path in (tmp_path / "two").glob("pytorch_model*")) == [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]
    assert (tmp_path / "four" / "model-00004-of-00004.safetensors").is_file()
    assert (tmp_path / "four" / "model.safetensors.index.json").is_file()
    assert sorted(path.name for path in (tmp_path / "one").glob("*model*")) == ["pytorch_model.bin", "tokenizer.model"]


@pytest.mark.parametrize("kind", PATCH_TOKEN_KINDS)
def test_patch_token_settings_are_those_of_the_stored_page(kind):
    config = checkpoint_config(kind, 24, torch.float32)
    ids = [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")]
    assert (ids, config["model_type"], config["rms_norm_eps"]) == ([0, 1, -1], "llava", 1e-6)
    assert (config["max_sequence_length"], config["vocab_size"]) == (2048, VOCABULARY_SIZE)
    assert "max_position_embeddings" not in config
    assert (config["mm_use_im_start_end"], config["mm_vision_select_layer"]) == (True, -2)
    is_wide = kind in ("exgra-med-dci", "exgra-med-sci")
    assert config["mm_hidden_size"] == (72 if is_wide else 24)
    assert not any(connector in str(config) for connector in ("dci", "sci", "sti"))
    if kind.startswith("exgra"):
        assert (config["multi_graph"], config["graph_num_features"]) == (True, 32)
        assert config["mm_projector_type"] == "mlp2x_gelu"


def test_placeholder_settings():
    med, plain = (checkpoint_config(kind, 24, torch.float16) for kind in ("llava-med-v1.5", "llava-v1.5"))
    assert (med["model_type"], med["num_key_value_heads"]) == ("llava_mistral", 2)
    for config in (med, plain):
        assert config["vocab_size"] == BASE_VOCABULARY_SIZE
        assert (config["image_aspect_ratio"], config["mm_use_im_start_end"]) == ("pad", False)
        assert config["mm_vision_tower"].endswith("-336")
        assert config["torch_dtype"] == "float16"


def test_options_of_a_checkpoint(tmp_path):
    folder = tmp_path / "plain"
    write_checkpoint(folder, "exgra-med", added_tokens=False, config_changes={"mm_vision_tower": "here"})
    assert not (folder / "added_tokens.json").exists()
    assert "pad_token" not in read_json(folder / "special_tokens_map.json")
    assert read_json(folder / "config.json")["mm_vision_tower"] == "here"
    bare = write_checkpoint(tmp_path / "bare", "llava-med-v1.5", with_tower=False)
    assert not any("vision_tower" in name for name in bare.state)


def test_weights_follow_the_seed_and_are_exact_in_half_precision(tmp_path):
    first = write_checkpoint(tmp_path / "first", "exgra-med", seed=5)
    again = write_checkpoint(tmp_path / "again", "exgra-med", seed=5, dtype=torch.float16)
    other = write_checkpoint(tmp_path / "other", "exgra-med", seed=6)
    random_names = [name for name in first.state if "inv_freq" not in name]
    assert all(torch.equal(first.state[name], again.state[name].float()) for name in random_names)
    assert not any(torch.equal(first.state[name], other.state[name]) for name in random_names)
    assert all(tensor.dtype == torch.float16 for tensor in read_state(again.folder).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_delta_and_base_make_the_whole(tmp_path, dtype):
    base = write_llama(tmp_path / "base", dtype=dtype)
    whole = write_checkpoint(tmp_path / "delta", "llava-med-v1-delta", base=base, dtype=dtype).state
    stored, base_state = read_state(tmp_path / "delta"), read_state(tmp_path / "base")
    assert not any(torch.equal(stored[name], whole[name]) for name in base_state)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(stored[name][BASE_VOCABULARY_SIZE:], whole[name][BASE_VOCABULARY_SIZE:])
        assert base_state[name].shape[0] == BASE_VOCABULARY_SIZE == stored[name].shape[0] - 4
        stored[name][:BASE_VOCABULARY_SIZE] += base_state.pop(name)
    for name, tensor in base_state.items():
        stored[name] += tensor
    assert_equal_states(stored, whole)


def test_only_a_delta_has_a_base(tmp_path, clip):
    with pytest.raises(ValueError, match=r"`base` for a delta only; got 'llava-med-v1-delta'"):
        write_checkpoint(tmp_path, "llava-med-v1-delta")
    with pytest.raises(ValueError, match="got 'exgra-med'"):
        write_checkpoint(tmp_path, "exgra-med", base=clip)


@pytest.mark.parametrize(("image_size", "patch_size", "num_layers"), [(32, 8, 4), (48, 8, 6), (28, 14, 2)])
def test_clip_hidden_states_are_those_of_transformers(tmp_path, image_size, patch_size, num_layers):
    clip = write_clip(tmp_path, image_size=image_size, patch_size=patch_size, num_layers=num_layers)
    images = random_images(torch.Generator().manual_seed(0), size=image_size)
    model = CLIPVisionModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(images, output_hidden_states=True).hidden_states
    actual = clip_hidden_states(clip.state, clip.config, images)
    assert len(actual) == len(expected) == num_layers + 1
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_clip_folder_is_a_whole_clip(clip):
    model, info = CLIPModel.from_pretrained(clip.folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert set(clip.state) - set(model.state_dict()) <= {
        "vision_model.embeddings.position_ids",
        "text_model.embeddings.position_ids",
    }
    assert clip.state["vision_model.embeddings.position_ids"].tolist() == [list(range(NUM_PATCHES + 1))]
    processor = CLIPImageProcessor.from_pretrained(clip.folder)
    assert processor.crop_size["height"] == 32
    assert processor.image_mean == pytest.approx([0.4814, 0.4578, 0.4082], abs=1e-4)
    assert processor.image_std == pytest.approx([0.2686, 0.2613, 0.2758], abs=1e-4)


def test_checkpoint_tower_is_another_whole_tower(tmp_path):
    stock = write_clip(tmp_path / "clip", image_size=48)
    tower = checkpoint_tower(write_checkpoint(tmp_path / "model", "llava-med-v1.5", clip=stock).state)
    of_stock = {name for name in stock.state if name.startswith("vision_model.") and "position_ids" not in name}
    assert set(tower) == of_stock
    assert all(tower[name].shape == stock.state[name].shape for name in tower)
    assert not any(torch.equal(tower[name], stock.state[name]) for name in tower)


def test_llama_logits_are_those_of_transformers(tmp_path):
    base = write_llama(tmp_path)
    input_ids = torch.randint(3, BASE_VOCABULARY_SIZE, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(tmp_path).eval()(input_ids).logits
    actual = decoder_logits(base.state, base.config, base.state["model.embed_tokens.weight"][input_ids])
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_mistral_logits_are_those_of_transformers(tmp_path):
    original = write_checkpoint(tmp_path, "llava-med-v1.5")
    model = stock_decoder(MistralForCausalLM, MistralConfig, original)
    inputs_embeds = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(inputs_embeds=inputs_embeds).logits
    torch.testing.assert_close(
        decoder_logits(original.state, original.config, inputs_embeds), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["llava-med-v1", "exgra-med"])
def test_patch_tokens_give_the_logits_of_stock_parts(tmp_path, clip, kind):
    original = write_checkpoint(tmp_path, kind, clip=clip)
    images = random_images(torch.Generator().manual_seed(0))
    input_ids = patch_token_ids(original.config)
    model = stock_decoder(LlamaForCausalLM, LlamaConfig, original)
    with torch.no_grad():
        tower = CLIPVisionModel.from_pretrained(clip.folder).eval()
        hidden_states = tower(images, output_hidden_states=True).hidden_states
        features = stock_projector(original)(hidden_states[-2][:, 1:])
        embedded = model.get_input_embeddings()(input_ids)
        spliced = torch.cat([embedded[:, :4], features, embedded[:, 20:]], dim=1)
        expected = model(inputs_embeds=spliced).logits
    assert expected.shape == (2, 23, VOCABULARY_SIZE)
    actual = original_logits(original.state, original.config, clip.state, clip.config, input_ids, images)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)
    other_images = original_logits(original.state, original.config, clip.state, clip.config, input_ids, images.flip(0))
    assert torch.equal(actual[:, :4], other_images[:, :4])
    assert (actual[:, 4:] - other_images[:, 4:]).abs().amax(dim=-1).min() > 1e-3


@pytest.mark.parametrize("kind", ["llava-med-v1.5", "llava-v1.5"])
def test_a_placeholder_gives_the_logits_of_stock_parts(tmp_path, kind):
    clip = write_clip(tmp_path / "clip", image_size=48)
    original = write_checkpoint(tmp_path / "model", kind, clip=clip)
    images = random_images(torch.Generator().manual_seed(0), size=48)
    input_ids = torch.tensor([[1, 300, IMAGE_PLACEHOLDER, 13, 270], [1, IMAGE_PLACEHOLDER, 301, 302, 271]])
    classes = (MistralForCausalLM, MistralConfig) if "med" in kind else (LlamaForCausalLM, LlamaConfig)
    model = stock_decoder(*classes, original)
    with torch.no_grad():
        tower = CLIPVisionModel.from_pretrained(clip.folder).eval()
        hidden_states = tower(images, output_hidden_states=True).hidden_states
        features = stock_projector(original)(hidden_states[-2][:, 1:])
        embedding = model.get_input_embeddings().weight
        rows = [(embedding[[1, 300]], embedding[[13, 270]]), (embedding[[1]], embedding[[301, 302, 271]])]
        spliced = [torch.cat([left, image, right]) for (left, right), image in zip(rows, features, strict=True)]
        expected = model(inputs_embeds=torch.stack(spliced)).logits
    assert expected.shape == (2, 4 + 36, BASE_VOCABULARY_SIZE)
    actual = original_logits(original.state, original.config, clip.state, clip.config, input_ids, images)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "dense_connector", "num_tokens"),
    [("exgra-med", "sti", 20), ("exgra-med-sci", "sci", 16), ("exgra-med-dci", "dci", 16)],
)
def test_float32_and_float64_agree_for_every_dense_connector(tmp_path, clip, kind, dense_connector, num_tokens):
    original = write_checkpoint(tmp_path, kind, clip=clip)
    images = random_images(torch.Generator().manual_seed(0))
    arguments = (original.state, original.config, clip.state, clip.config)
    input_ids = patch_token_ids(original.config, num_tokens)
    exact = original_logits(*arguments, input_ids, images, dense_connector, torch.float64)
    rounded = original_logits(*arguments, input_ids, images, dense_connector)
    assert exact.dtype == torch.float64
    assert 0 < (exact - rounded).abs().max() < 1e-4
    if dense_connector != "sti":
        other = {"sci": "dci", "dci": "sci"}[dense_connector]
        assert (original_logits(*arguments, input_ids, images, other) - rounded).abs().max() > 1e-2


def test_dense_connectors_of_24_layers_take_the_published_hidden_states():
    hidden_states = [torch.full((1, 257, 2), float(number)) for number in range(25)]
    for number, hidden_state in enumerate(hidden_states):
        hidden_state[:, 0] = -1.0
        hidden_state[:, 1:9] += torch.arange(8)[:, None] if number == 7 else 0
    none, sti, sci, dci = (connect(hidden_states, name) for name in ("none", "sti", "sci", "dci"))
    assert none.shape == (1, 256, 2)
    assert none.unique().tolist() == [23]
    assert sti.shape == (1, 320, 2)
    assert sti[0, [0, 255, 256, 257, 287, 288, 319], 0].tolist() == [23, 23, 7 + 3.5, 7, 7, 15, 15]
    assert sci.shape == dci.shape == (1, 256, 6)
    assert sci[0, -1].tolist() == [23, 23, 7, 7, 15, 15]
    assert dci[0, -1].tolist() == [23, 23, 5.5, 5.5, 17.5, 17.5]


def test_wrong_places_for_images_are_refused(tmp_path, clip):
    original = write_checkpoint(tmp_path / "patches", "exgra-med", clip=clip)
    images = random_images(torch.Generator().manual_seed(0))
    arguments = (original.state, original.config, clip.state, clip.config)
    with pytest.raises(ValueError, match="Expected 16 `<im_patch>`"):
        original_logits(*arguments, patch_token_ids(original.config, 15), images)
    with pytest.raises(ValueError, match="2 images are more"):
        original_logits(*arguments, torch.tensor([[1, 300]]), images)
    plain = write_checkpoint(tmp_path / "placeholder", "llava-v1.5", clip=clip)
    with pytest.raises(ValueError, match="there are none"):
        original_logits(plain.state, plain.config, clip.state, clip.config, torch.tensor([[1, IMAGE_PLACEHOLDER]]))


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_files_are_read_by_transformers(tmp_path, kind):
    base = write_llama(tmp_path / "base") if kind == "llava-med-v1-delta" else None
    original = write_checkpoint(tmp_path / kind, kind, base=base)
    tokenizer = load_tokenizer(original.folder, tmp_path / "tokenizer")
    has_patch_tokens = kind in PATCH_TOKEN_KINDS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert len(tokenizer) == BASE_VOCABULARY_SIZE + (4 if has_patch_tokens else 0)
    assert tokenizer.pad_token_id == (BASE_VOCABULARY_SIZE + 3 if has_patch_tokens else 0)
    if has_patch_tokens:
        ids = tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>", "[PAD]"])
        assert ids == [BASE_VOCABULARY_SIZE + number for number in range(4)]
        assert ids == [added_token_id(original.config, token) for token in ADDED_TOKENS]


def test_tokenizer_splits_the_separator_as_llama_does(tmp_path):
    tokenizer = load_tokenizer(write_llama(tmp_path / "base").folder, tmp_path / "tokenizer")
    assert tokenizer.tokenize("lung\n###") == ["\u2581lung", "<0x0A>", "##", "#"]
    assert tokenizer.tokenize("lung ###") == ["\u2581lung", "\u2581###"]
    assert tokenizer.tokenize("is\u00df") == ["\u2581is", "<0xC3>", "<0x9F>"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer(tmp_path, text):
    folder = write_llama(tmp_path / "base").folder
    tokenizer = load_tokenizer(folder, tmp_path / "tokenizer")
    ids = tokenizer(text.strip()).input_ids
    assert ids[0] == 1
    assert tokenizer.decode(ids[1:]) == text.strip()
    assert ids == original_token_ids(folder, text.strip())


def test_original_tokenizers_began_anew_after_an_added_token(tmp_path):
    folder = write_checkpoint(tmp_path / "model", "exgra-med").folder
    text = "what\n<im_start><im_patch><im_patch><im_end>### Assistant"
    tokenizer = load_tokenizer(folder, tmp_path / "tokenizer")
    pieces = tokenizer.convert_ids_to_tokens(original_token_ids(folder, text))
    image = ["<im_start>", "<im_patch>", "<im_patch>", "<im_end>"]
    assert pieces == ["<s>", "\u2581what", *image, "\u2581###", "\u2581Assistant"]
    unstripped = original_token_ids(folder, text, strips_around_added_tokens=False)
    assert tokenizer.convert_ids_to_tokens(unstripped)[1:4] == ["\u2581what", "<0x0A>", "<im_start>"]
    legacy = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", legacy=True)
    assert legacy(text).input_ids == unstripped


@pytest.mark.parametrize("kind", ["exgra-med", "llava-med-v1.5"])
def test_the_language_model_comes_before_the_projector_and_the_head_is_last(kind):
    config = checkpoint_config(kind, 24, torch.float32)
    names = list(checkpoint_state(torch.Generator().manual_seed(0), kind, config))
    assert (names[0], names[-1]) == ("model.embed_tokens.weight", "lm_head.weight")
    assert names.index("model.norm.weight") < names.index("model.mm_projector.0.weight")
