"""Cards of models: every figure from a file, nothing left open, no image that may not be shown."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from logramed.eval.run import main as evaluate
from logramed.hub_cards.card_schema import check_card
from logramed.hub_cards.model_card import FIGURES_FILE, write_model_card
from logramed.hub_cards.publications import prepare, read_front_matter
from logramed.hub_cards.results import find_evaluations, read_evaluations, without_local_paths
from tests.hub_cards.conftest import REPO, read_json


VQA_RAD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vqa_rad"
# What of a card's text are no figures: code, addresses, digests, versions of software, names with digits, headings.
NO_FIGURES = re.compile(
    r"```.*?```|\]\([^)]*\)|https?://\S+|`[^`]*`|arXiv:[\d.]+|95% interval|recall@1|ROUGE-L|F1|SHA-?256\w*"
    r"|(?:torch|transformers|trl|logramed) [\d.]+\S*|LoGra-Med\w*|^#[^\n]*$|!\[Image \d+\]|Image \d+",
    flags=re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def figures_in(text):
    """The numbers that a card shows as figures."""
    return set(NUMBER.findall(NO_FIGURES.sub(" ", text)))


@pytest.fixture(scope="module")
def publication(evaluated):
    return prepare(evaluated, REPO, license="apache-2.0")


def text_of(publication):
    return publication.card.split("---\n", 2)[2]


def without_examples(text):
    before, _, rest = text.partition("## Example answers")
    return before + rest.partition("## Training")[2]


def test_every_figure_of_the_card_is_traced_to_its_file_and_is_what_stands_there(publication):
    noted = json.loads(publication.contents.files[FIGURES_FILE])
    for figure in noted:
        value = json.loads(read(publication, figure["file"]))
        for key in figure["keys"]:
            value = value[key]
        shown = float(figure["text"].replace(",", ""))
        digits = len(figure["text"].partition(".")[2])
        assert shown == pytest.approx(value * figure["multiplied_by"], abs=0.51 * 10**-digits), figure
    traced = {figure["text"] for figure in noted}
    text = without_examples(text_of(publication))
    settings = re.search(r"<details>.*</details>", text, flags=re.DOTALL)[0]
    found = figures_in(text.replace(settings, ""))
    assert {"4", "12"} <= traced  # steps and training samples
    assert found - traced == set()
    assert len(found) > 15
    for name, number in re.findall(r"\| `(\w+)` \| `(-?[\d.]+(?:e-?\d+)?)` \|", settings):
        assert number in traced, name


def read(publication, name):
    content = publication.contents.files[name]
    return content if isinstance(content, bytes) else content.read_bytes()


def test_results_stand_in_the_metadata_with_counts_and_protocol(publication, evaluated):
    metadata = read_front_matter(publication.card)
    metrics = read_json(evaluated.parent / "evaluation" / "metrics.json")
    [result] = metadata["model-index"][0]["results"]
    by_type = {metric["type"]: metric for metric in result["metrics"]}
    for name, count in (("closed_accuracy", "num_closed"), ("open_recall", "num_open")):
        assert by_type[name]["value"] == pytest.approx(metrics["overall"][name], abs=0.006)
        assert by_type[name]["args"]["num_items"] == metrics["overall"][count]
        assert by_type[name]["args"]["protocol"] == "strict"
    assert result["dataset"]["args"]["data_fingerprint"] == metrics["run"]["data_fingerprint"]
    assert metadata["pipeline_tag"] == "image-text-to-text"
    assert metadata["library_name"] == "transformers"
    assert metadata["license"] == "apache-2.0"


def test_example_answers_are_the_first_and_their_generated_images_go_along(publication, evaluated):
    examples = json.loads(publication.contents.files["examples/examples.json"])
    rows = [
        json.loads(line) for line in (evaluated.parent / "evaluation" / "predictions.jsonl").read_text().splitlines()
    ]
    first = {row["image"]: row for row in reversed(rows)}
    expected = [first[image] for image in dict.fromkeys(row["image"] for row in rows)][:4]
    assert [example["prediction"] for example in examples] == [row["prediction"] for row in expected]
    assert {f"examples/{number}.png" for number in range(4)} <= publication.contents.shareable_images
    assert "![Image 1](examples/0.png)" in publication.card
    assert publication.contents.files["examples/0.png"].startswith(b"\x89PNG")


def test_card_names_data_seed_objective_and_hardware(publication):
    text = text_of(publication)
    assert re.search(r"`train\.json` \(fingerprint `[0-9a-f]{12}`\)", text)
    assert "drew with seed 0: no patient is in them" in text
    assert "plus 1 times multi-graph alignment (arXiv:2410.02615)" in text
    assert re.search(r"\| hardware \| \d+ CPU cores", text)
    assert "It has seen generated phantoms only" in text
    assert "![Losses, matching accuracy and recall over the steps of training](curves.png)" in text


def test_the_card_says_what_its_intervals_are_over(publication, evaluated):
    metrics = read_json(evaluated.parent / "evaluation" / "metrics.json")
    number = metrics["overall"]["num_clusters"]
    assert f"95% interval: bootstrap over {number} images, each with all its questions." in publication.card


def test_a_model_no_better_than_a_constant_answer_is_said_to_be_so(publication, evaluated):
    metrics = read_json(evaluated.parent / "evaluation" / "metrics.json")
    low = metrics["overall"]["intervals"]["closed_accuracy"][0]
    is_shown_better = low > metrics["constant_answer"]["closed_accuracy"]
    assert ("not shown to be better than one constant answer" in publication.card) != is_shown_better


def test_an_evaluation_of_other_weights_is_not_found_and_refused_where_it_is_named(evaluated, tmp_path):
    other = tmp_path / "runs" / "model"
    shutil.copytree(evaluated, other)
    assert find_evaluations(evaluated) == [evaluated.parent / "evaluation"]
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    shutil.copytree(evaluated.parent / "evaluation", other.parent / "evaluation")
    assert find_evaluations(other) == []
    with pytest.raises(ValueError, match="not an evaluation of the model in"):
        prepare(other, REPO, license="mit", evaluations=[other.parent / "evaluation"])


def test_a_card_without_evaluation_says_that_nothing_is_known(evaluated):
    card = prepare(evaluated, REPO, license="mit", evaluations=[]).card
    assert "No evaluation of it is published here" in card
    assert "model-index" not in card
    assert "## Results" not in card


def test_a_card_of_a_folder_that_no_run_wrote_leaves_the_training_out(evaluated, tmp_path):
    for path in evaluated.iterdir():
        if path.is_file() and path.name not in ("run.json", "train_metrics.json", "curves.png"):
            shutil.copy(path, tmp_path)
    card = prepare(tmp_path, REPO, license="mit").card
    assert "## Training" not in card
    assert "does not name what it was made from" in card


def test_base_models_and_data_sets_of_the_record_are_named(evaluated, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(evaluated, folder)
    record = read_json(folder / "run.json")
    record["starts"][-1]["base_models"] = ["openai/clip-vit-base-patch16", "../runs/local"]
    record["starts"][-1]["data"] = {"someone/vqa": "ab" * 32}
    record["starts"][-1]["generated_data"] = None
    (folder / "run.json").write_text(json.dumps(record))
    publication = prepare(folder, REPO, license="mit", base_models=["lmsys/vicuna-7b-v1.5"])
    metadata = read_front_matter(publication.card)
    assert metadata["base_model"] == ["lmsys/vicuna-7b-v1.5", "openai/clip-vit-base-patch16"]
    assert metadata["datasets"] == ["someone/vqa"]
    assert "generated phantoms only" not in publication.card


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason="needs ../shared/data/vqa_rad")
def test_images_of_patients_are_not_shown_unless_somebody_says_that_they_may(evaluated, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(evaluated, model)
    arguments = ["--model", str(model), "--benchmark", "vqa_rad", "--data", str(VQA_RAD), "--limit", "4"]
    evaluate([*arguments, "--no_blank_images", "--output", str(tmp_path / "evaluation")])
    publication = prepare(model, REPO, license="mit")
    assert not [name for name in publication.contents.files if name.startswith("examples/") and name.endswith("png")]
    assert "Only the first 4 questions were asked" in publication.card
    assert "test images and" in publication.card
    shared = prepare(model, REPO, license="mit", share_images_of=["vqa_rad"])
    assert "examples/0.png" in shared.contents.shareable_images


def test_example_images_carry_nothing_beside_their_pixels(evaluated):
    publication = prepare(evaluated, REPO, license="mit")
    for name in publication.contents.shareable_images:
        if name.startswith("examples/"):
            image = Image.open(io.BytesIO(publication.contents.files[name]))
            assert (max(image.size), image.info) == (256, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("license: apache-2.0", "license: [more information needed]"), "wrong, license"),
        (("license: apache-2.0\n", ""), "'license' is a required property"),
        (("pipeline_tag: image-text-to-text", "pipeline_tag: text-generation"), "wrong, pipeline_tag"),
        (("language: en", "language: en\nlicence: mit"), "'licence' was unexpected"),
        (("num_items: ", "num_rows: 3\n        num_items: "), "'num_rows' was unexpected"),
        (("Not for clinical use", "For use"), "not for clinical use"),
        (("## Limits", "## Limits\n\n[More Information Needed]"), "placeholder: '.More Information Needed.'"),
        (("## Limits", "## Limits\n\nTODO"), "placeholder: 'TODO'"),
        (("## Limits", "## Limits\n\n{{ limits }}"), "placeholder"),
        (("---\n", "", 1), "does not begin with metadata"),
    ],
)
def test_a_card_that_is_not_finished_is_refused(publication, change, words):
    check_card(publication.card, "model")
    changed = publication.card.replace(*change)
    assert changed != publication.card
    with pytest.raises(ValueError, match=words):
        check_card(changed, "model")


def test_an_adapters_card_loads_it_on_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    card = write_model_card(tmp_path, "a/b", kind="adapter", license="mit", base_models=["someone/base"]).text
    check_card(card, "adapter")
    assert 'base, adapter = "someone/base", "a/b"' in card
    assert "An adapter (LoRA) for LoGra-Med" in card


def test_local_paths_are_cut_and_nothing_else():
    content = {
        "a": "/data/x/y.json",
        "b": ["~/runs/z", "org/name"],
        "c": {"runs/a/b": 1.5},
        "d": "one / two",
        "e": None,
    }
    assert without_local_paths(content) == {
        "a": "y.json",
        "b": ["z", "org/name"],
        "c": {"b": 1.5},
        "d": "one / two",
        "e": None,
    }


def test_a_resumed_run_on_accelerators_is_told_with_traced_counts(evaluated, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(evaluated, folder)
    record = read_json(folder / "run.json")
    record["starts"] = [record["starts"][0], json.loads(json.dumps(record["starts"][0]))]
    record["starts"][1]["hardware"]["accelerators"] = ["NVIDIA H200", "NVIDIA H200"]
    (folder / "run.json").write_text(json.dumps(record))
    publication = prepare(folder, REPO, license="mit", language="zh")
    assert "2 x NVIDIA H200" in publication.card
    assert "| starts of the run, the first included | 2 |" in publication.card
    assert read_front_matter(publication.card)["language"] == "zh"
    noted = json.loads(publication.contents.files[FIGURES_FILE])
    travelling = json.loads(publication.contents.files["run.json"])
    assert {"text": "2", "file": "run.json", "keys": ["num_starts"], "multiplied_by": 1} in noted
    assert travelling["num_starts"] == travelling["starts"][1]["hardware"]["num_accelerators"] == 2


def test_two_evaluations_of_the_same_questions_are_refused(evaluated):
    folder = evaluated.parent / "evaluation"
    with pytest.raises(ValueError, match="second evaluation of phantoms_test"):
        read_evaluations([folder, folder], evaluated)
