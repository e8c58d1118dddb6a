"""Checkpoints of other codes in and stock LLaVA out, against an independent reimplementation of the originals."""

import json
import os
import re
import shutil
import subprocess
import sys
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import jinja2.nodes
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionModel,
    LlamaTokenizer,
    LlavaForConditionalGeneration,
    LogitsProcessor,
)

from logramed import LoGraMedConfig, LoGraMedForConditionalGeneration
from logramed.eval.models import load_model
from logramed.hub_cards.publications import prepare
from logramed.trainer.alignment.graph_network import GraphNetwork
from logramed.trainer.checkpoints.provenance import find_base_models
from logramed.trainer.conversion import weights
from logramed.trainer.conversion.incoming import convert_to_logramed
from logramed.trainer.conversion.stock import convert_to_llava
from logramed.trainer.convert import main
from tests.hub_client import client_of
from tests.hub_server import TOKEN, running_hub
from tests.modeling_logramed.test_auto_classes import FOUR, needs_four
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_config, tiny_model
from tests.trainer.conversion.originals import (
    IMAGE_PLACEHOLDER,
    KINDS,
    PATCH_TOKEN_KINDS,
    checkpoint_tower,
    original_logits,
    original_token_ids,
    write_checkpoint,
    write_clip,
    write_llama,
)


pytestmark = pytest.mark.usefixtures("default_text_encoder")


pytest.importorskip("sentencepiece")
TEXT = "what is it\n<image>\n###"
LOGITS = """
import json, sys, torch
for name in ("logramed", "torchvision", "trl", "peft"):
    sys.modules[name] = None
import transformers
from PIL import Image
for folder in sys.argv[1:]:
    is_ours = json.load(open(folder + "/config.json"))["model_type"] == "logramed"
    options = {"trust_remote_code": True} if is_ours else {}
    model = transformers.AutoModelForVision2Seq.from_pretrained(folder, **options).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    inputs = torch.load(folder + ".pt")
    text = inputs.pop("text").replace("<image>", processor.image_token)
    image = {"type": "image", "image": Image.new("RGB", (30, 20), (200, 20, 90))}
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [image, {"type": "text", "text": "what is it"}]}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.save({"logits": logits, "prompt": dict(prompt)}, folder + ".out.pt")
"""


def kind_argument(kind):
    """What `--from` calls a kind of the builders."""
    return {"llava-v1.5": "llava"}.get(kind, kind.removesuffix("-dci").removesuffix("-sci"))


def connector(kind):
    return kind[-3:] if kind.endswith(("-dci", "-sci")) else "none"


class Case:
    """A checkpoint of one kind, converted, and what the original says about one prompt with an image."""

    def __init__(self, kind, folder, clip, base):
        self.kind, self.clip = kind, clip
        self.source = folder / "sources" / kind
        self.original = write_checkpoint(
            self.source, kind, clip=clip, base=base if kind == "llava-med-v1-delta" else None
        )
        self.ours, self.stock = folder / "ours" / kind, folder / "stock" / kind
        options = {"vision_tower": str(clip.folder)}
        if connector(kind) != "none":
            options["dense_connector"] = connector(kind)
        if kind == "llava-med-v1-delta":
            options["base"] = str(base.folder)
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        assert main(["--from", kind_argument(kind), str(self.source), str(self.ours), *arguments]) == 0
        assert main(["--to", "llava", str(self.ours), str(self.stock)]) == 0
        self.processor = AutoProcessor.from_pretrained(self.ours)
        size = clip.config["vision_config"]["image_size"]
        self.pixel_values = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(5))
        text = TEXT.replace("<image>", self.processor.image_token)
        images = [Image.new("RGB", (20, 20))]
        self.input_ids = self.processor(text=[text], images=images, return_tensors="pt")["input_ids"]
        self.expected = self.original_logits(clip.state)

    def original_logits(self, tower):
        ids = self.input_ids
        if self.kind not in PATCH_TOKEN_KINDS:  # one place that is no token
            places = (ids[0] == self.processor.image_token_id).nonzero().flatten()
            before, after = ids[0, : places[0]].tolist(), ids[0, places[-1] + 1 :].tolist()
            ids = torch.tensor([[*before, IMAGE_PLACEHOLDER, *after]])
        arguments = (self.original.state, self.original.config, tower, self.clip.config, ids, self.pixel_values)
        return original_logits(*arguments, dense_connector=connector(self.kind))

    def check(self, logits):
        num_tokens = self.expected.shape[-1]
        torch.testing.assert_close(logits[..., :num_tokens], self.expected, rtol=1e-5, atol=1e-5)
        # New rows are never the likeliest.
        assert (logits[..., num_tokens:] < self.expected.amax(dim=-1, keepdim=True)).all()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversion")
    small, large = write_clip(folder / "clip"), write_clip(folder / "clip_large", image_size=48)
    base = write_llama(folder / "llama")
    return SimpleNamespace(folder=folder, clip=small, large_clip=large, base=base)


@pytest.fixture(scope="module")
def cases(originals):
    towers = {kind: originals.clip if kind in PATCH_TOKEN_KINDS else originals.large_clip for kind in KINDS}
    return {kind: Case(kind, originals.folder, towers[kind], originals.base) for kind in KINDS}


def logits_of(model, case):
    with torch.no_grad():
        return model.eval()(input_ids=case.input_ids, pixel_values=case.pixel_values).logits


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_original(cases, kind):
    case = cases[kind]
    case.check(logits_of(LoGraMedForConditionalGeneration.from_pretrained(case.ours), case))
    stock = LlavaForConditionalGeneration.from_pretrained(case.stock)
    case.check(logits_of(stock, case))
    assert not list(case.stock.glob("*.py"))


@needs_four
def test_transformers_4_gives_the_same_logits_prompts_and_pixels(cases, tmp_path):
    folders = {}
    for case in cases.values():
        for source in (case.ours, case.stock):
            copy = tmp_path / source.parent.name / source.name
            shutil.copytree(source, copy)
            inputs = {"input_ids": case.input_ids, "pixel_values": case.pixel_values, "text": TEXT}
            torch.save(inputs, f"{copy}.pt")
            folders[copy] = case
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [FOUR, "-c", LOGITS, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder, case in folders.items():
        found = torch.load(f"{folder}.out.pt")
        case.check(found["logits"])
        expected = show_prompt(AutoProcessor.from_pretrained(folder))
        assert torch.equal(found["prompt"]["input_ids"], expected["input_ids"])
        torch.testing.assert_close(found["prompt"]["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5)


def show_prompt(processor):
    content = [{"type": "image"}, {"type": "text", "text": "what is it"}]
    content[0]["image"] = Image.new("RGB", (30, 20), (200, 20, 90))
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_processor_gives_the_same_tokens_and_pixels(cases, kind):
    ours, stock = (
        show_prompt(AutoProcessor.from_pretrained(folder)) for folder in (cases[kind].ours, cases[kind].stock)
    )
    assert torch.equal(ours["input_ids"], stock["input_ids"])
    torch.testing.assert_close(ours["pixel_values"], stock["pixel_values"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", PATCH_TOKEN_KINDS)
def test_prompts_have_the_tokens_of_the_original_tokenizer(cases, kind):
    processor = cases[kind].processor
    image = "<im_start>" + "<im_patch>" * processor.num_image_tokens + "<im_end>"
    for text in ("what is it\n<image>\n###", "A ### Human: a<image>b\n### Assistant: yes\n###", "no image"):
        written = text.replace("<image>", "<im_patch>")
        images = [[Image.new("RGB", (8, 8))] * text.count("<image>")]
        expected = original_token_ids(cases[kind].source, text.replace("<image>", image))
        assert processor(text=[written], images=images)["input_ids"][0] == expected


def same_folders(first, second):
    names = {path.name for path in first.iterdir() if path.is_file()}
    assert {path.name for path in second.iterdir() if path.is_file()} == names
    for name in names:
        if name.endswith(".safetensors"):
            one, other = load_file(first / name), load_file(second / name)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)
        elif name.endswith(".json"):
            assert json.loads((first / name).read_text()) == json.loads((second / name).read_text()), name
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_stock_template_is_seen_to_take_parts_and_begins_the_sequence(cases, kind):
    template = (cases[kind].stock / "chat_template.jinja").read_text()
    tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
        re.sub(r"{%-? (end)?generation -?%}", "", template)
    )
    loops = [loop.iter for loop in tree.find_all(jinja2.nodes.For)]
    assert any(isinstance(over, jinja2.nodes.Getitem) and over.arg == jinja2.nodes.Const("content") for over in loops)
    rendered = AutoProcessor.from_pretrained(cases[kind].stock).apply_chat_template([{"role": "user", "content": "a"}])
    assert rendered.startswith("<s>")
    assert not rendered.startswith("<s><s>")


def test_trained_model_goes_out_with_the_same_logits(cases, tmp_path, data_file):
    from tests.trainer.test_adapters import train

    trained = train(tmp_path, data_file, cases["exgra-med-dci"].ours, "trained", "--learning_rate", "0.01")
    before = load_file(cases["exgra-med-dci"].ours / "model.safetensors")
    after = load_file(trained / "model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert "multi_modal_projector.linear_1.weight" in changed
    convert_to_llava(str(trained), tmp_path / "stock")
    case = cases["exgra-med-dci"]
    models = [AutoModelForImageTextToText.from_pretrained(folder) for folder in (trained, tmp_path / "stock")]
    torch.testing.assert_close(logits_of(models[1], case), logits_of(models[0], case), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_form_of_files_gives_the_same_weights(originals, cases, tmp_path, form, num_shards):
    source = tmp_path / "source"
    write_checkpoint(source, "exgra-med", clip=originals.clip, weights=form, num_shards=num_shards)
    convert_to_logramed("exgra-med", str(source), tmp_path / "ours", vision_tower=str(originals.clip.folder))
    one, other = (load_file(folder / "model.safetensors") for folder in (cases["exgra-med"].ours, tmp_path / "ours"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def with_source(folder, source):
    """The folder with another source in its parts.json."""
    path = folder / "parts.json"
    parts = json.loads(path.read_text())
    parts |= {"source": source, "base_models": [source, *parts["base_models"][1:]]}
    path.write_text(json.dumps(parts))
    return folder


def test_shards_are_written_with_an_index(originals, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 20_000)
    monkeypatch.setattr(weights, "REOPEN_BYTES", 10_000)
    ours = tmp_path / "ours"
    convert_to_logramed("exgra-med", str(cases["exgra-med"].source), ours, vision_tower=str(originals.clip.folder))
    shards = sorted(path.name for path in ours.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert not (ours / "model.safetensors").exists()
    index = json.loads((ours / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    case = cases["exgra-med"]
    case.check(logits_of(LoGraMedForConditionalGeneration.from_pretrained(ours), case))


def test_half_precision_stays_half_and_equal(originals, tmp_path):
    source = tmp_path / "source"
    original = write_checkpoint(source, "exgra-med-dci", clip=originals.clip, dtype=torch.float16)
    options = {"vision_tower": str(originals.clip.folder), "dense_connector": "dci"}
    convert_to_logramed("exgra-med", str(source), tmp_path / "ours", **options)
    model = LoGraMedForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype="auto")
    assert model.dtype == torch.float16
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    assert torch.equal(written["language_model.model.norm.weight"], original.state["model.norm.weight"])
    convert_to_llava(str(tmp_path / "ours"), tmp_path / "stock")
    stock = load_file(tmp_path / "stock" / "model.safetensors")
    assert {tensor.dtype for tensor in stock.values()} == {torch.float16}
    folded = "multi_modal_projector.linear_1.weight"
    assert all(torch.equal(written[name], stock[name]) for name in written if name != folded)


@pytest.mark.parametrize("given", [False, True])
def test_tower_of_the_checkpoint_is_kept_unless_another_is_named(originals, cases, tmp_path, given):
    case = cases["llava-med-v1.5"]
    source = tmp_path / "source"
    shutil.copytree(case.source, source)
    config = json.loads((source / "config.json").read_text())
    config["mm_vision_tower"] = str(case.clip.folder)  # names its sizes, and in the release the weights too
    (source / "config.json").write_text(json.dumps(config))
    options = {"vision_tower": str(case.clip.folder)} if given else {}
    convert_to_logramed("llava-med-v1.5", str(source), tmp_path / "ours", **options)
    tower = case.clip.state if given else checkpoint_tower(case.original.state)
    found = logits_of(LoGraMedForConditionalGeneration.from_pretrained(tmp_path / "ours"), case)
    expected = case.original_logits(tower)
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-5)
    assert (case.expected - case.original_logits(checkpoint_tower(case.original.state))).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_length_are_set_right(cases, kind):
    case = cases[kind]
    config, tokenizer = LoGraMedConfig.from_pretrained(case.ours), case.processor.tokenizer
    text = config.text_config
    assert (text.bos_token_id, text.eos_token_id) == (1, 2)
    assert tokenizer.convert_ids_to_tokens([1, 2]) == ["<s>", "</s>"]
    pad = "[PAD]" if kind in PATCH_TOKEN_KINDS else "<pad>"
    assert tokenizer.convert_tokens_to_ids(pad) == text.pad_token_id == tokenizer.pad_token_id
    assert text.max_position_embeddings >= 2048
    assert config.image_token_index == tokenizer.convert_tokens_to_ids(case.processor.image_token)
    assert case.processor.num_image_tokens == (16 if kind in PATCH_TOKEN_KINDS else 36)
    generation = json.loads((case.ours / "generation_config.json").read_text())
    assert (
        generation["eos_token_id"] == json.loads((case.stock / "generation_config.json").read_text())["eos_token_id"]
    )
    for name in ("bos_token_id", "pad_token_id"):
        assert generation[name] == getattr(text, name)


def test_tokens_that_the_tokenizer_lacks_are_added_in_the_order_of_the_rows(originals, cases, tmp_path):
    source = tmp_path / "source"
    write_checkpoint(source, "exgra-med", clip=originals.clip, added_tokens=False)
    convert_to_logramed("exgra-med", str(source), tmp_path / "ours", vision_tower=str(originals.clip.folder))
    one, other = (AutoProcessor.from_pretrained(folder) for folder in (tmp_path / "ours", cases["exgra-med"].ours))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


class Writing(LogitsProcessor):
    """Has `generate` write these tokens."""

    def __init__(self, tokens, num_prompt_tokens):
        self.tokens, self.num_prompt_tokens = tokens, num_prompt_tokens

    def __call__(self, input_ids, scores):
        scores = torch.full_like(scores, -1e9)
        scores[:, self.tokens[input_ids.shape[1] - self.num_prompt_tokens]] = 0
        return scores


@pytest.mark.parametrize("answer", ["lung\n###", "lung ###", "lung</s>"])
@pytest.mark.parametrize("form", ["ours", "stock"])
def test_plain_generate_stops_where_a_turn_ends(cases, answer, form):
    case = cases["llava-med-v1"]
    model, processor = load_model(str(getattr(case, form)))
    tokens = processor.tokenizer(answer, add_special_tokens=False)["input_ids"] + [50] * 20
    writing = Writing(tokens, case.input_ids.shape[1])
    sequence = model.generate(
        input_ids=case.input_ids,
        pixel_values=case.pixel_values,
        attention_mask=torch.ones_like(case.input_ids),
        max_new_tokens=15,
        logits_processor=[writing],
    )
    new = sequence[0, case.input_ids.shape[1] :]
    assert len(new) <= len(tokens) - 20
    if form == "ours":
        assert processor.post_process_image_text_to_text(new[None]) == ["lung"]


def test_graph_network_is_kept_for_training(cases):
    state = load_file(cases["exgra-med"].ours / "training" / "graph_network.safetensors")
    original = cases["exgra-med"].original.state
    network = GraphNetwork(original["model.norm.weight"].shape[0])
    network.load_state_dict(state)
    name = "conv2.lin_rel.weight"
    assert torch.equal(network.get_parameter(name), original[f"model.message_pass_node_features.{name}"])
    assert not (cases["llava-med-v1"].ours / "training" / "graph_network.safetensors").exists()


def test_card_says_where_a_converted_model_comes_from(originals, cases, tmp_path):
    ours = tmp_path / "ours"
    shutil.copytree(cases["llava-med-v1-delta"].ours, ours)
    with_source(ours, "microsoft/llava-med-7b-delta")
    parts = json.loads((ours / "parts.json").read_text())
    assert parts["base_models"][1:] == [str(originals.base.folder), str(originals.clip.folder)]
    publication = prepare(ours, "someone/converted")
    card = publication.contents.files["README.md"].decode()
    front_matter = yaml.safe_load(card.split("---")[1])
    assert front_matter["license"] == "other"
    assert front_matter["license_name"] == "microsoft-research-license"
    assert front_matter["base_model"] in ("microsoft/llava-med-7b-delta", ["microsoft/llava-med-7b-delta"])
    assert "Converted from microsoft/llava-med-7b-delta, a checkpoint in the form of llava-med-v1-delta." in card
    other = prepare(ours, "someone/converted", license="cc-by-4.0").contents.files["README.md"].decode()
    assert "license: cc-by-4.0" in other
    assert "microsoft-research-license" not in other


def test_licence_of_the_source_card_is_recorded(originals, cases, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(cases["exgra-med"].source, source)
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: mine\ntags:\n- a\n---\n# A model\n")
    convert_to_logramed("exgra-med", str(source), tmp_path / "ours", vision_tower=str(originals.clip.folder))
    parts = json.loads((tmp_path / "ours" / "parts.json").read_text())
    assert (parts["license"], parts["license_name"]) == ("other", "mine")
    assert (parts["format"], parts["source"]) == ("exgra-med", str(source))
    assert find_base_models(str(tmp_path / "ours")) == [str(source), str(originals.clip.folder)]


def test_tower_as_transformers_5_saves_it_is_taken(originals, cases, tmp_path):
    loaded = CLIPVisionModel.from_pretrained(originals.clip.folder)
    tower = CLIPVisionModel(loaded.config)  # one that was loaded is saved under the names that its file had
    tower.load_state_dict(loaded.state_dict())
    tower.save_pretrained(tmp_path / "tower")
    assert not any(name.startswith("vision_model.") for name in load_file(tmp_path / "tower" / "model.safetensors"))
    source = str(cases["exgra-med"].source)
    convert_to_logramed("exgra-med", source, tmp_path / "ours", vision_tower=str(tmp_path / "tower"))
    case = cases["exgra-med"]
    case.check(logits_of(LoGraMedForConditionalGeneration.from_pretrained(tmp_path / "ours"), case))


def test_checkpoint_on_the_hub_is_converted(originals, cases, tmp_path):
    with running_hub(tmp_path / "hub") as hub, client_of(hub):
        api = HfApi(endpoint=hub.address, token=TOKEN)
        for name, folder in (("org/checkpoint", cases["exgra-med"].source), ("org/clip", originals.clip.folder)):
            api.create_repo(name)
            api.upload_folder(repo_id=name, folder_path=folder)
        options = ["--vision_tower", "org/clip"]
        assert main(["--from", "exgra-med", "org/checkpoint", str(tmp_path / "ours"), *options]) == 0
        with pytest.raises(ValueError, match="SOURCE org/chekpoint: there is no such folder here, and no such model"):
            main(["--from", "exgra-med", "org/chekpoint", str(tmp_path / "other"), *options])
        message = "`--model` org/checkpoint is .*: logramed-convert --from exgra-med org/checkpoint OUTPUT"
        with pytest.raises(ValueError, match=message):
            load_model("org/checkpoint")
    case = cases["exgra-med"]
    case.check(logits_of(LoGraMedForConditionalGeneration.from_pretrained(tmp_path / "ours"), case))
    parts = json.loads((tmp_path / "ours" / "parts.json").read_text())
    assert parts["base_models"] == ["org/checkpoint", "org/clip"]


# --- forms that checkpoints of others have ---


def changed_config(case, folder, **changes):
    """A copy of a checkpoint whose config.json has other values; `None` takes one out."""
    shutil.copytree(case.source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    return folder


def convert(kind, source, output, case, **options):
    options = {"vision_tower": str(case.clip.folder), **options}
    return convert_to_logramed(kind, str(source), output, **options)


def test_dense_connector_of_many_layers_gives_the_same_logits_as_stock_llava(tmp_path):
    clip = write_clip(tmp_path / "clip", num_layers=24)
    case = Case("exgra-med-dci", tmp_path, clip, None)
    case.check(logits_of(LlavaForConditionalGeneration.from_pretrained(case.stock), case))


@pytest.mark.parametrize("kind", ["llava-med-v1", "exgra-med", "llava-med-v1-delta"])
def test_image_tokens_are_found_without_a_word_of_them_in_the_configuration(originals, cases, tmp_path, kind):
    source = changed_config(cases[kind], tmp_path / "source", mm_use_im_start_end=None)
    options = {"base": str(originals.base.folder)} if kind == "llava-med-v1-delta" else {}
    convert(kind, source, tmp_path / "ours", cases[kind], **options)
    assert same_folders(cases[kind].ours, with_source(tmp_path / "ours", str(cases[kind].source)))


def test_tokens_around_images_are_left_out_where_the_configuration_says_so(cases, tmp_path):
    source = changed_config(cases["exgra-med"], tmp_path / "source", mm_use_im_start_end=False)
    convert("exgra-med", source, tmp_path / "ours", cases["exgra-med"])
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert (processor.image_token, processor.image_start_token) == ("<im_patch>", None)


@pytest.mark.parametrize(
    "changes",
    [{"mm_vision_select_layer": None}, {"vocab_size": None}, {"mm_vision_tower": ["CLIP"]}, {"torch_dtype": "x"}],
)
def test_configuration_may_lack_fields_or_have_them_in_lists(cases, tmp_path, changes):
    case = cases["exgra-med"]
    if "mm_vision_tower" in changes:
        changes = {"mm_vision_tower": [str(case.clip.folder)]}
    source = changed_config(case, tmp_path / "source", **changes)
    options = {"vision_tower": None} if "mm_vision_tower" in changes else {}
    convert("exgra-med", source, tmp_path / "ours", case, **options)
    case.check(logits_of(LoGraMedForConditionalGeneration.from_pretrained(tmp_path / "ours"), case))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("kind", ["exgra-med", "llava-med-v1.5"])
def test_fast_tokenizer_alone_splits_as_the_original_did(cases, tmp_path, kind, legacy, begins):
    case, source = cases[kind], tmp_path / "source"
    shutil.copytree(case.source, source)
    with TemporaryDirectory() as alone:
        shutil.copyfile(source / "tokenizer.model", f"{alone}/tokenizer.model")
        tokenizer = LlamaTokenizer.from_pretrained(alone, legacy=legacy, add_bos_token=begins)
    (source / "tokenizer.model").unlink()
    added = source / "added_tokens.json"
    if added.is_file():
        tokenizer.add_tokens(sorted(json.loads(added.read_text()), key=json.loads(added.read_text()).get))
    tokenizer.save_pretrained(source)
    added.unlink(missing_ok=True)
    convert(kind, source, tmp_path / "ours", case)
    one, other = (show_prompt(AutoProcessor.from_pretrained(folder)) for folder in (case.ours, tmp_path / "ours"))
    assert torch.equal(one["input_ids"], other["input_ids"])


def test_widest_type_of_the_weights_is_kept(originals, cases, tmp_path):
    def to_half(state):
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].half()

    source = changed_weights(cases, tmp_path, to_half)
    convert("llava-med-v1", source, tmp_path / "ours", cases["llava-med-v1"])
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.float32}


def test_parts_of_a_larger_tensor_and_tied_weights_are_written_apart(originals, cases, tmp_path):
    def share(state):
        name = "model.layers.0.self_attn.q_proj.weight"
        state[name] = torch.cat([state[name], state[name]])[: len(state[name])]
        state["lm_head.weight"] = state["model.embed_tokens.weight"]

    source = changed_weights(cases, tmp_path, share)
    convert("llava-med-v1", source, tmp_path / "ours", cases["llava-med-v1"])
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(written["language_model.lm_head.weight"], written["language_model.model.embed_tokens.weight"])


def test_index_says_which_of_two_files_counts(cases, tmp_path):
    case, source = cases["exgra-med"], tmp_path / "source"
    shutil.copytree(case.source, source)
    index = json.loads((source / "pytorch_model.bin.index.json").read_text())["weight_map"]
    right = source / index["model.norm.weight"]
    [wrong] = {source / name for name in index.values()} - {right}
    torch.save({**torch.load(wrong), "model.norm.weight": torch.zeros(32)}, wrong)
    convert("exgra-med", source, tmp_path / "ours", case)
    assert same_folders(case.ours, with_source(tmp_path / "ours", str(case.source)))


@pytest.mark.parametrize("known", [False, True])
def test_tower_of_unknown_or_other_sizes_is_refused(originals, cases, tmp_path, known):
    source = tmp_path / "source"
    shutil.copytree(cases["llava-med-v1.5"].source, source)
    name = str(originals.clip.folder) if known else "/data/of/somebody/clip"
    config = json.loads((source / "config.json").read_text()) | {"mm_vision_tower": name}
    (source / "config.json").write_text(json.dumps(config))
    unknown = f"vision tower has unknown sizes: mm_vision_tower in its config.json is '{name}'"
    message = "1 weights are of another shape: vision_tower" if known else unknown
    refused(tmp_path, message, "--from", "llava-med-v1.5", source, [])


@pytest.mark.parametrize(("kind", "given"), [("llava-med-v1", "delta"), ("llava-med-v1-delta", "complete")])
def test_delta_and_whole_model_in_each_others_place_are_warned_of(originals, cases, tmp_path, kind, given):
    source = cases["llava-med-v1-delta" if given == "delta" else "llava-med-v1"].source
    options = {"base": str(originals.base.folder)} if kind.endswith("delta") else {}
    with pytest.warns(UserWarning, match=rf"looks like a {given}.*model\.norm\.weight averages"):
        convert(kind, source, tmp_path / "ours", cases["llava-med-v1"], **options)


def test_card_that_cannot_be_read_stops_no_conversion(cases, tmp_path):
    for number, content in enumerate((b"---\n\n---\n", b"---\nonly text\n---\n", b"---\na: [\n---\n", b"\xff\xfe")):
        source = tmp_path / f"source{number}"
        shutil.copytree(cases["exgra-med"].source, source)
        (source / "README.md").write_bytes(content)
        convert("exgra-med", source, tmp_path / f"ours{number}", cases["exgra-med"])
        assert json.loads((tmp_path / f"ours{number}" / "parts.json").read_text())["license"] == "cc-by-nc-4.0"


def test_sigterm_leaves_nothing(cases, tmp_path):
    code = """
import os, signal, sys
from logramed.trainer.conversion import weights
from logramed.trainer.convert import command
weights.save_file = lambda *args, **options: os.kill(os.getpid(), signal.SIGTERM)
sys.argv[1:] = sys.argv[1:]
sys.exit(command())
"""
    case = cases["exgra-med"]
    words = ["--from", "exgra-med", case.source, tmp_path / "out", "--vision_tower", case.clip.folder]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, check=False)
    assert done.returncode == 143, done.stderr
    assert list(tmp_path.iterdir()) == []


# --- refusals: nothing is left behind ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pytorch_model.bin.index.json", b"[]", r"pytorch_model\.bin\.index\.json is not an index of weight files"),
        ("pytorch_model.bin.index.json", b'{"weight_map": {"a": null}}', r"is not an index of weight files"),
        ("config.json", b"[]", r"config\.json must hold a JSON object, got a list"),
        ("config.json", b"{", r"config\.json is not valid JSON"),
        ("added_tokens.json", b"[]", r"added_tokens\.json must hold a JSON object"),
        (
            "tokenizer.model",
            b"version https://git-lfs",
            r"tokenizer\.model cannot be read as a SentencePiece model",
        ),
    ],
)
def test_damaged_file_beside_the_weights_is_named(originals, cases, tmp_path, name, content, message):
    source = tmp_path / "source"
    shutil.copytree(cases["exgra-med"].source, source)
    (source / name).write_bytes(content)
    refused(tmp_path, message, "--from", "exgra-med", source, ["--vision_tower", str(originals.clip.folder)])


def test_list_of_weights_is_refused(originals, cases, tmp_path):
    source = changed_weights(cases, tmp_path, lambda state: None)
    torch.save([torch.zeros(2)], source / "pytorch_model.bin")
    tower = ["--vision_tower", str(originals.clip.folder)]
    refused(tmp_path, "must hold weights by name, got a list", "--from", "llava-med-v1", source, tower)


def test_base_that_is_no_llama_is_refused(originals, cases, tmp_path):
    source, clip = cases["llava-med-v1-delta"].source, str(originals.clip.folder)
    options = ["--vision_tower", clip, "--base", clip]
    refused(tmp_path, "is not a LLaMA: it has no language_model", "--from", "llava-med-v1-delta", source, options)


def test_stock_llava_needs_no_conversion(cases, tmp_path):
    message = r"is transformers' own LLaVA, which needs no conversion: every command takes it"
    refused(tmp_path, message, "--from", "llava", cases["exgra-med"].stock, [])


def refused(tmp_path, message, *arguments):
    """The command is refused with `message`, and leaves no file."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=message):
        main([*map(str, arguments[:-1]), str(tmp_path / "out"), *arguments[-1]])
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("exgra-med-dci", [], r"takes 72 features, three times .*--dense_connector dci or --dense_connector sci"),
        ("exgra-med-dci", ["--dense_connector", "sti"], r"sti gives 24 features, but the projector takes 72"),
        ("exgra-med", ["--dense_connector", "dci"], r"dci joins three layers, but the projector takes 24"),
    ],
)
def test_dense_connector_that_is_not_told_or_does_not_fit_is_refused(originals, cases, tmp_path, kind, given, message):
    options = ["--vision_tower", str(originals.clip.folder), *given]
    refused(tmp_path, message, "--from", "exgra-med", cases[kind].source, options)


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        (
            "llava-med-v1",
            "llava-med-v1.5",
            r"does not fit --from llava-med-v1 \(.*'llava_mistral'\)\. .*`--from llava-med-v1\.5`",
        ),
        ("llava-med-v1.5", "exgra-med", r"does not fit --from llava-med-v1\.5 .*`--from exgra-med`"),
        ("llava-med-v1", "exgra-med", "looks like `--from exgra-med`"),
        ("llava-med-v1", "llava-v1.5", "looks like `--from llava`"),
        ("exgra-med", "llava-v1.5", "looks like `--from llava`"),
        ("llava", "llava-med-v1", "looks like `--from llava-med-v1`"),
    ],
)
def test_another_kind_is_refused(cases, tmp_path, asked, kind, message):
    refused(tmp_path, message, "--from", asked, cases[kind].source, [])


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("llava-med-v1-delta", [], "--base, the LLaMA .* is needed by --from llava-med-v1-delta only"),
        ("llava-med-v1", ["--base", "x"], "--base, the LLaMA .* is for --from llava-med-v1-delta only"),
    ],
)
def test_base_goes_with_a_delta_alone(cases, tmp_path, kind, given, message):
    refused(tmp_path, message, "--from", kind, cases[kind].source, given)


def changed_weights(cases, tmp_path, change, kind="llava-med-v1"):
    """A copy of a checkpoint with one file of weights, which `change` has changed."""
    source = tmp_path / "source"
    shutil.copytree(cases[kind].source, source, ignore=shutil.ignore_patterns("*.bin*", "*.safetensors*"))
    state = dict(cases[kind].original.state)
    change(state)
    torch.save(state, source / "pytorch_model.bin")
    return source


def without(state):
    del state["model.layers.1.mlp.up_proj.weight"]


def with_more(state):
    state["model.layers.7.mlp.up_proj.weight"] = state["visual_abstractor.weight"] = torch.zeros(2)


def of_another_shape(state):
    state["model.norm.weight"] = torch.zeros(3)


def without_projector(state):
    del state["model.mm_projector.weight"]


def with_other_rows(state):
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, r"1 weights are missing: language_model\.model\.layers\.1\.mlp\.up_proj\.weight"),
        (with_more, r"2 weights are left over: visual_abstractor\.weight, language_model\.model\.layers\.7\.mlp"),
        (
            of_another_shape,
            r"1 weights are of another shape: language_model\.model\.norm\.weight \[3\], expected \[32\]",
        ),
        (without_projector, r"holds no model\.mm_projector weights"),
        (with_other_rows, r"453 embedding rows, but config\.json says 454 \(`vocab_size`\)"),
    ],
)
def test_incomplete_checkpoint_is_refused_with_a_list(originals, cases, tmp_path, change, message):
    source = changed_weights(cases, tmp_path, change)
    refused(tmp_path, message, "--from", "llava-med-v1", source, ["--vision_tower", str(originals.clip.folder)])


def test_weights_with_other_objects_are_refused(originals, cases, tmp_path):
    source = changed_weights(cases, tmp_path, lambda state: state.update(step=3))
    tower = ["--vision_tower", str(originals.clip.folder)]
    message = r"pytorch_model\.bin holds values that are not weights: step"
    refused(tmp_path, message, "--from", "llava-med-v1", source, tower)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_pickled_code_is_not_run(originals, cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = changed_weights(cases, tmp_path, lambda state: state.update(harmful=Harmful()))
    tower = ["--vision_tower", str(originals.clip.folder)]
    refused(tmp_path, r"pytorch_model\.bin cannot be read as weights", "--from", "llava-med-v1", source, tower)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("kind", ["exgra-med", "llava-med-v1.5"])
def test_damaged_or_missing_shard_is_named(originals, cases, tmp_path, kind):
    source = tmp_path / "source"
    shutil.copytree(cases[kind].source, source)
    shard = sorted(path for path in source.iterdir() if path.suffix in (".bin", ".safetensors"))[-1]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    tower = ["--vision_tower", str(cases[kind].clip.folder)]
    refused(tmp_path, rf"{shard.name} cannot be read as weights", "--from", kind_argument(kind), source, tower)
    shard.unlink()
    message = rf"names 1 files that are not in .*: {shard.name}"
    refused(tmp_path, message, "--from", kind_argument(kind), source, tower)


def test_failure_half_way_leaves_nothing(originals, cases, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("the disk is gone")

    monkeypatch.setattr(weights, "save_file", fail)
    tower = ["--vision_tower", str(originals.clip.folder)]
    refused(tmp_path, "the disk is gone", "--from", "exgra-med", cases["exgra-med"].source, tower)
    refused(tmp_path, "the disk is gone", "--to", "llava", cases["exgra-med"].ours, [])


def test_output_that_is_not_empty_is_left_alone(cases, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    refused(tmp_path, "is not empty", "--from", "exgra-med", cases["exgra-med"].source, [])


def test_missing_source_is_named(cases, tmp_path):
    wrong = cases["exgra-med"].source.with_name("exgra-mad")
    refused(
        tmp_path,
        r"SOURCE .*exgra-mad: there is no such folder",
        "--from",
        "exgra-med",
        wrong,
        [],
    )


def test_checkpoint_without_a_tower_needs_one(cases, tmp_path):
    source = changed_weights(cases, tmp_path, lambda state: None)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "mm_vision_tower": None}))
    refused(tmp_path, r"names none\. Name it with --vision_tower", "--from", "llava-med-v1", source, [])


# --- out ---


def saved(model, folder, **values):
    model.save_pretrained(folder)
    tiny_processor(
        num_image_tokens=model.config.num_image_tokens, image_size=model.config.vision_config.image_size, **values
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"dense_connector": "sti"}, "the connector sti turns further layers into tokens"),
        ({"image_token_pooling": 1}, r"it pools the patches of an image \(`image_token_pooling=1`\)"),
        ({"lm_head_bias": True}, "its head has biases"),
    ],
)
def test_model_that_llava_cannot_be_is_refused(tmp_path, values, reason):
    folder = saved(tiny_model(**values), tmp_path / "model")
    refused(tmp_path, f"cannot be a stock LLaVA: {reason}", "--to", "llava", folder, [])


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("language_model", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "values", [{}, {"projector_type": "linear"}, {"dense_connector": "dci"}, {"dense_connector": "sci"}]
)
def test_any_tower_and_language_model_is_exported(tmp_path, tower, language_model, values):
    sizes = {
        "vision_sizes": {"num_hidden_layers": 4},
        "text_sizes": {"rope_theta": 3e5, "tie_word_embeddings": language_model == "qwen2"},
    }
    model = tiny_model(tower, language_model, **sizes, **values)
    folder = saved(model, tmp_path / "model")
    convert_to_llava(str(folder), tmp_path / "stock")
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "stock").eval()
    from tests.tiny_models import tiny_inputs

    inputs = tiny_inputs(model, num_images=2)
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_another_model_is_not_exported(cases, tmp_path):
    refused(tmp_path, "is not a LoGra-Med: its model type is 'llava'", "--to", "llava", cases["llava-v1.5"].stock, [])


def test_options_of_the_other_direction_are_refused(cases, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--to", "llava", str(cases["exgra-med"].ours), str(tmp_path / "out"), "--base", "x"])
    assert "--base: only for --from" in capsys.readouterr().err


def test_adapter_is_merged_before_it_is_exported(tmp_path, data_file):
    from logramed.trainer.train import main as train_main
    from tests.trainer.test_adapters import LORA, logits, train
    from tests.trainer.test_train import write_recipe

    train_main([write_recipe(tmp_path, data_file, output_dir=str(tmp_path / "base"), max_steps=1)])
    adapter = train(tmp_path, data_file, tmp_path / "base", "adapter", *LORA)
    (tmp_path / "base" / "parts.json").write_text('{"source": "org/base", "base_models": ["org/base"]}')
    convert_to_llava(str(adapter), tmp_path / "stock")
    assert json.loads((tmp_path / "stock" / "parts.json").read_text())["source"] == "org/base"
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["model_type"] == "llava"
    torch.testing.assert_close(logits(tmp_path / "stock"), logits(adapter), rtol=1e-4, atol=1e-5)
    assert (logits(tmp_path / "stock") - logits(tmp_path / "base")).abs().max() > 1e-3
    assert not list(tmp_path.glob("stock-merged-*"))


# --- foreign folders in other commands ---


def commands(folder, data, tmp_path):
    from logramed.hub_cards.serve import main as serve
    from logramed.trainer.build_model import main as build
    from logramed.trainer.train import main as train

    output = str(tmp_path / "output")
    yield lambda: train(["--model", folder, "--train_data", data, "--output_dir", output, "--report_to", "none"])
    yield lambda: serve(["--model", folder])
    yield lambda: build(["--vision", folder, "--language", folder, "--output", f"{output}_built"])
    yield lambda: load_model(folder)


@pytest.mark.parametrize("kind", ["llava-med-v1.5", "exgra-med", "llava-med-v1", "llava-v1.5"])
def test_every_command_says_how_a_foreign_folder_is_converted(cases, data_file, tmp_path, kind):
    folder = str(cases[kind].source)
    message = re.escape(f"Convert it first: logramed-convert --from {kind_argument(kind)} {folder} OUTPUT")
    for run in commands(folder, str(data_file), tmp_path):
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize("kind", ["llava-med-v1.5", "exgra-med"])
def test_our_class_says_that_a_foreign_folder_is_to_be_converted(cases, kind):
    with pytest.raises(ValueError, match=r"not 'logramed'\. `logramed-convert` converts"):
        LoGraMedForConditionalGeneration.from_pretrained(cases[kind].source)


def test_configuration_without_a_type_is_ours():
    config = tiny_config()
    content = config.to_dict()
    del content["model_type"]
    assert LoGraMedConfig.from_dict(content).projector_type == config.projector_type
