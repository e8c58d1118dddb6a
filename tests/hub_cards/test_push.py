"""Publishing: what is shown, asked, sent and refused, and what becomes of it when the Hub fails."""

import io
import json

import pytest
from huggingface_hub import HfApi
from PIL import Image

from logramed.eval.command_line import run_command
from logramed.hub_cards import push
from logramed.hub_cards.integrity import verify_signature
from logramed.hub_cards.publications import prepare
from logramed.hub_cards.push import Push, PushError, RefusedError
from tests.benchmarks import hub_faults
from tests.hub_cards.test_integrity import write_keys
from tests.hub_client import client_of
from tests.hub_server import TOKEN, running_hub


REPO = hub_faults.REPO


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hub_faults.save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def hub(tmp_path):
    with running_hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture(scope="module")
def full_hub(tmp_path_factory, model):
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        hub_faults.try_push(hub_faults.PUSHES[0], model, running)
        yield running


def push_to(hub, model, agreed=True, **options):
    said = []
    with client_of(hub):
        publication = prepare(model, REPO, license="apache-2.0", include=options.pop("include", ()))
        commit = Push(publication, REPO, **options).run(lambda question: agreed, said.append)
    return commit, "\n".join(said)


@pytest.mark.parametrize("trial", hub_faults.PUSHES, ids=lambda trial: trial.said)
def test_a_push_in_spite_of_a_fault_is_whole_or_not_there(hub, model, trial):
    outcome = hub_faults.try_push(trial, model, hub)
    assert outcome.result == trial.outcome, outcome.words
    assert trial.words in outcome.words
    assert outcome.num_commits == (trial.outcome == "published")
    if trial.again:
        assert hub_faults.try_push(hub_faults.Trial("", ""), model, hub).result == "published"
    assert hub_faults.holds(model, hub)


@pytest.mark.parametrize("trial", hub_faults.DOWNLOADS, ids=lambda trial: trial.said)
def test_a_download_in_spite_of_a_fault_is_right_or_known_to_be_wrong(full_hub, tmp_path, trial):
    outcome = hub_faults.try_download(trial, full_hub, tmp_path)
    assert outcome.result in trial.outcome.split(" or "), outcome.words
    assert trial.words in outcome.words
    if trial.again and outcome.result == "refused":
        assert hub_faults.try_download(hub_faults.Trial("", ""), full_hub, tmp_path).result == "loaded"


def test_a_push_that_was_interrupted_sends_only_what_the_hub_has_not(hub, model):
    first = hub_faults.Trial("", "", lambda: [hub_faults.Fault("/commit/", 502, times=10_000)])
    hub_faults.try_push(first, model, hub)
    again = hub_faults.try_push(hub_faults.Trial("", ""), model, hub)
    assert (again.result, again.num_uploads) == ("published", {})


def test_nothing_is_uploaded_that_nobody_agreed_to(hub, model):
    commit, said = push_to(hub, model, agreed=False)
    assert commit is None
    assert "model-00001-of-" in said
    assert hub.hub.read("models", REPO) is None
    assert not [request for request in hub.hub.requests if "POST" in request or "PUT" in request]


def test_a_second_push_changes_what_changed_and_removes_what_is_gone(hub, model, tmp_path):
    first, _ = push_to(hub, model)
    again, said = push_to(hub, model)
    assert again == first
    assert "holds these files already" in said
    with client_of(hub):
        HfApi(token=TOKEN).upload_file(path_or_fileobj=b"mine", path_in_repo="notes.md", repo_id=REPO)
    other = hub_faults.save_model(tmp_path / "other")
    for path in other.glob("model-*.safetensors"):
        path.unlink()
    (other / "model.safetensors.index.json").unlink()
    hub_faults.tiny_model(seed=1, text_sizes={"vocab_size": 84}).save_pretrained(other)
    second, _ = push_to(hub, other)
    files = hub.hub.files("models", REPO)
    assert second != first
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert files["notes.md"] == b"mine"


def test_a_push_without_a_key_takes_an_older_signature_away(hub, model, tmp_path):
    private, public = write_keys(tmp_path, "mine")
    push_to(hub, model, private_key=private)
    files = hub.hub.files("models", REPO)
    for name, content in files.items():
        (tmp_path / "signed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "signed" / name).write_bytes(content)
    verify_signature(tmp_path / "signed", public)
    (model / "LICENSE").write_text("terms")
    push_to(hub, model)
    (model / "LICENSE").unlink()
    assert "LICENSE" in hub.hub.files("models", REPO)
    assert "model.sig" not in hub.hub.files("models", REPO)


def test_a_public_repository_is_not_filled_by_a_private_push(hub, model):
    push_to(hub, model, private=False)
    assert hub.hub.read("models", REPO)["private"] is False
    with pytest.raises(PushError, match="public already"):
        push_to(hub, model)


def test_a_push_to_a_branch_leaves_main_alone(hub, model):
    commit, _ = push_to(hub, model, revision="experiment")
    repo = hub.hub.read("models", REPO)
    assert repo["refs"]["experiment"] == commit
    assert repo["commits"][repo["refs"]["main"]]["files"] == {}


def test_a_file_that_must_not_be_published_stops_all_of_it(hub, model, tmp_path):
    folder = hub_faults.save_model(tmp_path / "model")
    (folder / "notes.txt").write_text("token = hf_" + "abcdefgh" * 5)
    with pytest.raises(RefusedError, match=r"notes\.txt: holds a Hugging Face token"):
        push_to(hub, folder, include=["notes.txt"])
    assert hub.hub.read("models", REPO) is None


def test_an_included_image_needs_somebodys_word(hub, model, tmp_path):
    folder = hub_faults.save_model(tmp_path / "model")
    Image.new("L", (4, 4)).save(folder / "scheme.png")
    with pytest.raises(RefusedError, match=r"scheme\.png: is an image.*--share_included_images"):
        push_to(hub, folder, include=["scheme.png"])
    with client_of(hub):
        options = {"include": ["scheme.png"], "share_included_images": True}
        publication = prepare(folder, REPO, license="mit", **options)
        Push(publication, REPO).run(lambda question: True, lambda text: None)
    assert "scheme.png" in hub.hub.files("models", REPO)


def test_the_command_asks_and_takes_no_answer_for_no(hub, model, monkeypatch, capsys):
    command = [str(model), "--repo", REPO, "--license", "mit"]
    with client_of(hub):
        assert push.main(command) == 0
        assert "Nobody is there to ask: give `--yes`" in capsys.readouterr().out
        terminal = io.StringIO("n\n")
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)
        assert push.main(command) == 0
        assert "Nothing was uploaded." in capsys.readouterr().out
        assert hub.hub.read("models", REPO) is None
        assert push.main([*command, "--yes"]) == 0
    assert "Published: http://127.0.0.1" in capsys.readouterr().out
    assert hub.hub.read("models", REPO)["private"]


def test_a_dry_run_shows_files_and_card_and_uploads_nothing(hub, model, capsys):
    with client_of(hub):
        assert push.main([str(model), "--repo", REPO, "--license", "mit", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "SHA256SUMS" in printed
    assert "# logramed-mini" in printed
    assert hub.hub.requests == []


def test_a_preview_is_the_card_as_one_page_with_its_pictures(evaluated, tmp_path, capsys):
    page = tmp_path / "card.html"
    command = [str(evaluated), "--repo", REPO, "--license", "mit", "--dry_run", "--preview", str(page)]
    assert push.main(command) == 0
    assert f"Card: {page}" in capsys.readouterr().out
    shown = page.read_text()
    assert "<h1>logramed-mini</h1>" in shown
    assert "<td>closed accuracy</td>" in shown
    assert shown.count("data:image/png;base64,") == 5  # the curves and four examples
    assert 'src="curves.png"' not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repo", REPO], "Say with `--license`"),
        (["--repo", "logramed-mini", "--license", "mit"], "an owner and a name"),
        (["--repo", REPO, "--license", "mit", "--include", "*.nothing"], "fits no file"),
        (["--repo", REPO, "--license", "mit", "--share_images_of", "mimic"], "'mimic', which is no benchmark"),
        (["--repo", REPO, "--license", "mit", "--private_key", "nowhere.pem"], "nowhere.pem is no private key"),
        (["--repo", REPO, "--license", "Apache 2.0"], "metadata of the card are wrong, license"),
    ],
)
def test_wrong_arguments_are_refused_in_words(model, capsys, arguments, words):
    assert run_command(lambda: push.main([str(model), *arguments, "--yes"])) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_nothing_known_is_refused(tmp_path, capsys):
    assert run_command(lambda: push.main([str(tmp_path), "--repo", REPO])) == 2
    assert "cannot be told what" in capsys.readouterr().err
    assert run_command(lambda: push.main([str(tmp_path / "nowhere"), "--repo", REPO])) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_weights_as_a_pickle_are_refused(tmp_path, model):
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"no weights as safetensors\. pytorch_model\.bin is a pickle"):
        prepare(tmp_path, REPO, license="mit")


def test_files_of_this_machine_stay_here_with_a_reason(model, tmp_path):
    folder = hub_faults.save_model(tmp_path / "model")
    for name in ("optimizer.pt", "training_args.bin", "unknown.csv"):
        (folder / name).write_text("x")
    (folder / "checkpoint-5").mkdir()
    contents = prepare(folder, REPO, license="mit").contents
    assert contents.left_out["optimizer.pt"] == contents.left_out["checkpoint-5/"] == "state of training"
    assert "`--include` takes it" in contents.left_out["unknown.csv"]
    assert not {"optimizer.pt", "training_args.bin", "unknown.csv"} & set(contents.files)
    assert prepare(folder, REPO, license="mit", include=["unknown.csv"]).contents.files["unknown.csv"]


def test_an_adapter_names_its_base_on_the_hub_and_no_folder_of_this_machine(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/data/base", "r": 8}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match="names no base model on the Hub"):
        prepare(tmp_path, REPO, license="mit")
    publication = prepare(tmp_path, REPO, license="mit", base_models=["someone/base"])
    settings = json.loads(publication.contents.files["adapter_config.json"])
    assert settings == {"base_model_name_or_path": "someone/base", "r": 8}
    assert publication.kind == "adapter"
    assert "library_name: peft" in publication.card
