"""Publishing: what is shown, sent and refused, and what becomes of it when the Hub fails."""

import json

import pytest
from huggingface_hub import HfApi, snapshot_download
from PIL import Image

from logramed.eval.command_line import run_command
from logramed.hub_cards import push
from logramed.hub_cards.publications import prepare
from logramed.hub_cards.push import PushError
from tests.hub_client import client_of
from tests.hub_server import READ_TOKEN, TOKEN, Fault, running_hub
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


REPO = "tester/logramed-mini"


def save_model(folder, **options):
    """A tiny model in several weight files, and its processor."""
    tiny_model(text_sizes={"vocab_size": 84}, **options).save_pretrained(folder, max_shard_size="40KB")
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def hub(tmp_path):
    with running_hub(tmp_path / "hub") as running:
        yield running


def push_to(hub, model, token=TOKEN, include=(), **options):
    with client_of(hub, token):
        return push.push(prepare(model, REPO, license="apache-2.0", include=include), REPO, **options)


def weights_at(hub):
    return {name: content for name, content in hub.hub.files("models", REPO).items() if name.endswith(".safetensors")}


def weights_of(model):
    return {path.name: path.read_bytes() for path in model.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("token", "faults", "words"),
    [
        (TOKEN, [Fault("/commit/", 502, times=10_000)], "502"),
        (TOKEN, [Fault("/lfs/", "drop", "PUT", 10_000)], "logramed-mini failed: "),
        ("hf_unknown", [], "401"),
        (READ_TOKEN, [], "403"),
    ],
)
def test_a_failed_push_says_why_shows_nothing_and_can_be_repeated(hub, model, token, faults, words):
    hub.hub.faults = faults
    with pytest.raises(PushError, match=words):
        push_to(hub, model, token)
    repo = hub.hub.read("models", REPO)
    assert repo is None or len(repo["commits"]) == 1  # that of the empty repository
    hub.hub.faults = []
    push_to(hub, model)
    assert weights_at(hub) == weights_of(model)


def test_a_push_in_spite_of_passing_faults_is_whole(hub, model):
    hub.hub.faults = [Fault("/lfs/", "drop", "PUT"), Fault("/preupload/", 429)]
    push_to(hub, model)
    assert [fault.times for fault in hub.hub.faults] == [0, 0]
    assert weights_at(hub) == weights_of(model)


def test_a_push_that_was_interrupted_sends_only_what_the_hub_has_not(hub, model):
    hub.hub.faults = [Fault("/commit/", 502, times=10_000)]
    with pytest.raises(PushError):
        push_to(hub, model)
    hub.hub.faults, hub.hub.requests = [], []
    push_to(hub, model)
    assert not [request for request in hub.hub.requests if request.startswith("PUT /lfs/")]


def test_a_damaged_download_is_found_by_huggingface_hub(hub, model, tmp_path):
    push_to(hub, model)
    with client_of(hub):
        hub.hub.faults = [Fault("/cdn/", "flip", "GET")]
        snapshot_download(REPO, cache_dir=tmp_path)
        found = HfApi(token=TOKEN).verify_repo_checksums(REPO, cache_dir=tmp_path)  # `hf cache verify`
        assert [mismatch["path"].split("-")[0] for mismatch in found.mismatches] == ["model"]


def test_a_second_push_changes_what_changed_and_removes_what_is_gone(hub, model, tmp_path):
    first = push_to(hub, model)
    assert push_to(hub, model) == first
    with client_of(hub):
        HfApi(token=TOKEN).upload_file(path_or_fileobj=b"mine", path_in_repo="notes.md", repo_id=REPO)
    other = tmp_path / "other"
    tiny_model(text_sizes={"vocab_size": 84}, seed=1).save_pretrained(other)
    tiny_processor().save_pretrained(other)
    assert push_to(hub, other) != first
    files = hub.hub.files("models", REPO)
    assert weights_at(hub) == weights_of(other)
    assert "model.safetensors.index.json" not in files
    assert files["notes.md"] == b"mine"


def test_a_public_repository_is_not_filled_by_a_private_push(hub, model):
    push_to(hub, model, private=False)
    assert hub.hub.read("models", REPO)["private"] is False
    with pytest.raises(PushError, match="public already"):
        push_to(hub, model)


def test_a_push_to_a_branch_leaves_main_alone(hub, model):
    commit = push_to(hub, model, revision="experiment")
    repo = hub.hub.read("models", REPO)
    assert repo["refs"]["experiment"] == commit
    assert repo["commits"][repo["refs"]["main"]]["files"] == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [("notes.txt", r"notes\.txt holds a Hugging Face token"), ("scan.png", r"scan\.png is .* image")],
)
def test_a_file_that_must_not_be_published_stops_all_of_it(hub, tmp_path, name, words):
    folder = save_model(tmp_path / "model")
    (folder / "notes.txt").write_text("token = hf_" + "abcdefgh" * 5)
    Image.new("L", (4, 4)).save(folder / "scan.png")
    with pytest.raises(PushError, match=words):
        push_to(hub, folder, include=[name])
    assert hub.hub.read("models", REPO) is None


def test_the_command_publishes_privately_and_a_dry_run_nothing(hub, model, capsys):
    command = [str(model), "--repo", REPO, "--license", "mit"]
    with client_of(hub):
        assert push.main([*command, "--dry_run"]) == 0
        assert hub.hub.requests == []
        printed = capsys.readouterr().out
        assert "model-00001-of-" in printed
        assert "# logramed-mini" in printed
        assert push.main(command) == 0
    assert f"Published in {REPO}, commit " in capsys.readouterr().out
    assert hub.hub.read("models", REPO)["private"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repo", REPO], "with `--license`, such as apache-2.0 or cc-by-nc-4.0"),
        (["--repo", "logramed-mini", "--license", "mit"], "an owner and a name"),
        (["--repo", REPO, "--license", "mit", "--include", "*.nothing"], "matches no file"),
        (["--repo", REPO, "--license", "Apache 2.0"], "`license` must be an identifier such as apache-2.0"),
    ],
)
def test_wrong_arguments_are_refused_in_words(model, capsys, arguments, words):
    assert run_command(lambda: push.main([str(model), *arguments])) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_nothing_known_is_refused(tmp_path, capsys):
    assert run_command(lambda: push.main([str(tmp_path), "--repo", REPO])) == 2
    assert "holds nothing that can be published" in capsys.readouterr().err
    assert run_command(lambda: push.main([str(tmp_path / "nowhere"), "--repo", REPO])) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_missing_weights_are_refused(tmp_path, model):
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="no safetensors weights"):
        prepare(tmp_path, REPO, license="mit")
    folder = save_model(tmp_path / "model")
    (folder / sorted(weights_of(folder))[1]).unlink()
    with pytest.raises(
        ValueError, match=r"lacks model-00002-of-\d+\.safetensors, which model\.safetensors\.index\.json"
    ):
        prepare(folder, REPO, license="mit")


def test_only_known_files_are_published(tmp_path):
    folder = save_model(tmp_path / "model")
    for name in ("optimizer.pt", "training_args.bin", "unknown.csv"):
        (folder / name).write_text("x")
    (folder / "checkpoint-5").mkdir()
    contents = prepare(folder, REPO, license="mit").contents
    assert {"optimizer.pt", "training_args.bin", "unknown.csv", "checkpoint-5/"} <= set(contents.left_out)
    assert not {"optimizer.pt", "training_args.bin", "unknown.csv"} & set(contents.files)
    assert prepare(folder, REPO, license="mit", include=["unknown.csv"]).contents.files["unknown.csv"]


def test_an_adapter_names_its_base_on_the_hub_and_no_folder_of_this_machine(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/data/base", "target_modules": r".*\.(q|v)_proj"})
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match="names no base model on the Hub"):
        prepare(tmp_path, REPO, license="mit")
    publication = prepare(tmp_path, REPO, license="mit", base_models=["someone/base"])
    settings = json.loads(publication.contents.files["adapter_config.json"])
    assert settings == {"base_model_name_or_path": "someone/base", "target_modules": r".*\.(q|v)_proj"}
    assert publication.kind == "adapter"
    assert "library_name: peft" in publication.card
    assert 'base, adapter = "someone/base", "tester/logramed-mini"' in publication.card
    assert "An adapter (LoRA) for LoGra-Med" in publication.card
