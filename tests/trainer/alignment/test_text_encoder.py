import json
import pickle
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from logramed.trainer.alignment.text_encoder import TextEncoder


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "lung", "liver", "mass", "no", "clear", "the"]
TEXTS = ["left lung", "no mass", "the right lung is clear", "", "liver", "the left liver no mass no mass the mass"]


def write_encoder(folder, seed=0, pooling=None, vocabulary=VOCABULARY, special=True, maximum=16):
    """A tiny BERT with a tokenizer of one token a word, as sentence-transformers lays them out."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, initializer_range=0.5, **sizes)
    )
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        ids = [(name, vocabulary.index(name)) for name in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=maximum,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    ).save_pretrained(folder)
    if pooling:
        write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    return write_encoder(tmp_path / "encoder")


@pytest.fixture
def encoded(monkeypatch):
    """The number of texts in each forward pass of a BERT."""
    counts, forward = [], BertModel.forward

    def counting(self, input_ids=None, attention_mask=None, token_type_ids=None, **kwargs):
        counts.append(len(input_ids))
        return forward(self, input_ids, attention_mask, token_type_ids, **kwargs)

    monkeypatch.setattr(BertModel, "forward", counting)
    return counts


def embed_by_hand(folder, text, pooling):
    words = ["[CLS]", *text.split(), "[SEP]"][:16]
    ids = [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in words]
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    embedding = states[0] if pooling == "cls" else sum(states) / len(ids)
    return embedding / embedding.square().sum().sqrt()


def flip(name):
    return {f"pooling_mode_{mode}": mode == name for mode in ("cls_token", "mean_tokens", "max_tokens")}


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (None, "mean"),
        (flip("mean_tokens"), "mean"),
        (flip("cls_token"), "cls"),
        ({"embedding_dimension": 16, "pooling_mode": "cls"}, "cls"),
    ],
)
def test_embeddings_are_those_computed_by_hand(tmp_path, config, pooling):
    folder = write_encoder(tmp_path / "encoder", pooling=config)
    embeddings = TextEncoder(folder)(TEXTS)
    expected = torch.stack([embed_by_hand(folder, text, pooling) for text in TEXTS])
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=0)
    assert (embeddings.dtype, embeddings.requires_grad, embeddings.device.type) == (torch.float32, False, "cpu")
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(TEXTS)))


def test_pooling_is_read_where_modules_json_says(folder):
    modules = [("Transformer", ""), ("Pooling", "pooling"), ("Normalize", "2_Normalize")]
    write_json(
        folder / "modules.json",
        [{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in modules],
    )
    write_json(folder / "pooling" / "config.json", flip("cls_token"))
    assert TextEncoder(folder).pooling == "cls"


def test_a_text_of_a_batch_gives_what_it_gives_alone(folder):
    together = TextEncoder(folder)(TEXTS)
    for batch_size in (1, 2):
        torch.testing.assert_close(TextEncoder(folder, batch_size=batch_size)(TEXTS), together, atol=1e-6, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(TextEncoder(folder)(TEXTS), together, atol=1e-6, rtol=0)


def test_each_text_is_encoded_once(folder, encoded):
    encoder = TextEncoder(folder, batch_size=4)
    assert encoder.prepare(text for text in TEXTS * 2) == 6
    assert encoder(TEXTS[::-1] * 2).shape == (12, 16)
    assert encoded == [4, 2]


def test_a_pickled_encoder_holds_its_table_and_no_model(folder, encoded):
    encoder = TextEncoder(folder)
    expected = encoder(TEXTS)
    copy = pickle.loads(pickle.dumps(encoder))
    assert not {"_model", "_tokenizer"} & vars(copy).keys()
    assert torch.equal(copy(TEXTS), expected)
    assert sum(encoded) == 6


def test_a_caller_that_changes_embeddings_changes_no_later_answer(folder):
    encoder = TextEncoder(folder)
    expected = encoder(TEXTS).clone()
    encoder(TEXTS).zero_()
    assert torch.equal(encoder(TEXTS), expected)


def test_no_text_gives_no_embedding(folder):
    encoder = TextEncoder(folder)
    assert encoder([]).shape == (0, encoder.size) == (0, 16)
    assert encoder.prepare([]) == 0


class Answers(torch.utils.data.Dataset):
    def __init__(self, encoder):
        self.encoder = encoder

    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        num_missing = self.encoder.prepare([TEXTS[index]])
        return self.encoder([TEXTS[index]])[0], num_missing


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_have_the_table_and_encode_what_it_lacks(folder, start_method):
    encoder = TextEncoder(folder)
    encoder.prepare(TEXTS[:5])
    loader = DataLoader(
        Answers(encoder), batch_size=3, num_workers=1, multiprocessing_context=start_method, timeout=120
    )
    embeddings, num_missing = (torch.cat(column) for column in zip(*loader, strict=True))
    torch.testing.assert_close(embeddings, encoder(TEXTS), atol=1e-6, rtol=0)
    assert num_missing.tolist() == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("maximum", "settings", "expected"), [(8, {}, 8), (16, {"max_seq_length": 6}, 6)])
def test_long_texts_are_cut_with_one_warning_that_counts_them(tmp_path, caplog, maximum, settings, expected):
    folder = write_encoder(tmp_path / "encoder", maximum=maximum)
    write_json(folder / "sentence_bert_config.json", settings)
    encoder = TextEncoder(folder)
    long = ["no " * 30, "mass " * 30, "no " * 20]
    embeddings = encoder([*long, "no mass"])
    encoder(["liver " * 30])
    said = [record.message for record in caplog.records if record.name == "logramed.trainer.alignment.text_encoder"]
    assert [message.split(" that")[0] for message in said] == [f"3 of 4 texts are cut to the {expected} tokens"]
    torch.testing.assert_close(embeddings[0], embeddings[2])
    torch.testing.assert_close(embeddings[1], embed_by_hand(folder, "mass " * (expected - 2), "mean"))


def test_a_tokenizer_without_a_maximum_cuts_at_the_positions_of_the_model(tmp_path):
    folder = write_encoder(tmp_path / "encoder", maximum=None)
    encoder = TextEncoder(folder)
    assert encoder.max_length == 16
    assert encoder(["no " * 40]).isfinite().all()


def test_texts_are_lowercased_where_the_encoder_says_so(folder):
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    encoder = TextEncoder(folder)
    torch.testing.assert_close(encoder(["LEFT Lung"])[0], embed_by_hand(folder, "left lung", "mean"))


def test_a_model_without_token_types_is_not_given_them(folder):
    config = BertConfig.from_pretrained(folder).to_dict()
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": config["vocab_size"]}
    DistilBertModel(DistilBertConfig(max_position_embeddings=16, **sizes)).save_pretrained(folder)
    encoder = TextEncoder(folder)
    torch.testing.assert_close(encoder(TEXTS[:1])[0], embed_by_hand(folder, TEXTS[0], "mean"), atol=1e-6, rtol=0)


def test_loading_draws_no_random_number_and_trains_nothing(folder):
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    model.save_pretrained(folder)
    encoder = TextEncoder(folder)
    state = torch.get_rng_state()
    encoder(TEXTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert not encoder._model.training
    assert not any(weight.requires_grad for weight in encoder._model.parameters())


def test_a_hub_id_is_read_from_the_cache_offline(folder, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "models--someone--encoder"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    encoder = TextEncoder("someone/encoder")
    assert encoder.source == repository / "snapshots" / commit
    assert torch.equal(encoder(TEXTS), TextEncoder(folder)(TEXTS))


def test_a_missing_folder_is_named(tmp_path):
    write_encoder(tmp_path / "encoder")
    words = rf"{tmp_path}/encodre can't be used: there is no such folder\.$"
    with pytest.raises(ValueError, match=words):
        TextEncoder(tmp_path / "encodre")


@pytest.mark.parametrize("name", ["someone/encoder-not-there", "folder with spaces"])
def test_a_missing_encoder_is_refused_in_one_sentence(name):
    words = f"^`alignment_text_encoder` {name} can't be used: it is neither a folder nor a Hub model "
    with pytest.raises(ValueError, match=words + r"that is cached or can be downloaded\.$"):
        TextEncoder(name)


def pool_by(config):
    return lambda folder: write_json(folder / "1_Pooling" / "config.json", config)


def modules_with_dense(folder):
    modules = [{"type": f"sentence_transformers.models.{name}", "path": ""} for name in ("Transformer", "Dense")]
    write_json(folder / "modules.json", modules)


def drop_pad_token(folder):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text())
            write_json(folder / name, {name: value for name, value in content.items() if name != "pad_token"})


def write_t5(folder):
    T5Model(T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (pool_by(flip("max_tokens")), "its pooling is max_tokens, but only cls_token and mean_tokens are supported"),
        (
            pool_by(flip("cls_token") | {"pooling_mode_mean_tokens": True}),
            "its pooling is cls_token and mean_tokens, ",
        ),
        (pool_by({"pooling_mode": "lasttoken"}), "its pooling is lasttoken, "),
        (modules_with_dense, "has a Dense module, but only Transformer, Pooling and Normalize are supported"),
        (
            lambda folder: write_json(folder / "config_sentence_transformers.json", {"default_prompt_name": "query"}),
            "puts a prompt before each text",
        ),
        (drop_pad_token, "no padding token: set `pad_token` in tokenizer_config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "config.json").unlink(), "config"),
        (lambda folder: (folder / "1_Pooling" / "config.json").write_text("{"), "Expecting property name"),
        (write_t5, "T5Config is not the configuration of a text encoder"),
    ],
)
def test_an_encoder_that_can_not_be_used_is_refused_in_one_sentence(tmp_path, spoil, words):
    folder = write_encoder(tmp_path / "encoder", pooling=flip("mean_tokens"))
    spoil(folder)
    with pytest.raises(ValueError, match=f"^`alignment_text_encoder` {folder} can't be used: .*{words}") as caught:
        TextEncoder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", ["damaged", "missing"])
def test_weights_that_can_not_be_loaded_are_refused_with_the_first_text(folder, spoil):
    path = folder / "model.safetensors"
    if spoil == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", config | {"num_hidden_layers": 3})
    words = {"damaged": "", "missing": "its files lack 16 of its weights, such as encoder.layer.2"}
    with pytest.raises(ValueError, match=f"^`alignment_text_encoder` {folder} can't be used: {words[spoil]}"):
        TextEncoder(folder)(TEXTS)


def test_a_text_without_any_token_is_refused(tmp_path):
    encoder = TextEncoder(write_encoder(tmp_path / "encoder", special=False))
    assert encoder(["mass"]).shape == (1, 16)
    with pytest.raises(ValueError, match="finds no token in ' ': leave such texts out"):
        encoder(["mass", " "])


def test_embeddings_that_are_not_finite_are_refused(folder):
    model = BertModel.from_pretrained(folder)
    torch.nn.init.constant_(model.embeddings.word_embeddings.weight, float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="returned non-finite embeddings"):
        TextEncoder(folder)(["mass"])
