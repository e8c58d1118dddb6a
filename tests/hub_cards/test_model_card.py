"""Cards of models: every figure from a file, nothing left open, no image that may not be shown."""

import json
import re
import shutil
from pathlib import Path

import pytest

from logramed.eval.run import main as evaluate
from logramed.hub_cards.model_card import write_model_card
from logramed.hub_cards.publications import prepare, read_front_matter
from logramed.hub_cards.results import read_evaluations
from tests.hub_cards.conftest import REPO, read_json


VQA_RAD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vqa_rad"
# What of a card's text are no figures: code, addresses, digests, versions of software, names with digits, headings.
NO_FIGURES = re.compile(
    r"```.*?```|\]\([^)]*\)|https?://\S+|`[^`]*`|arXiv:[\d.]+|95% interval|recall@1|ROUGE-L|F1|SHA-?256\w*"
    r"|(?:torch|transformers|trl|logramed) [\d.]+\S*|LoGra-Med\w*|^#[^\n]*$|!\[Image \d+\]|Image \d+",
    flags=re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def untraced_figures(publication):
    """The numbers in a card's text, and those of them that no result file beside it holds."""
    files = publication.contents.files
    values = []
    for name, content in files.items():
        if name.endswith(".json"):
            values += numbers_in(json.loads(content if isinstance(content, bytes) else content.read_bytes()))
    figures = set(NUMBER.findall(NO_FIGURES.sub(" ", publication.card.split("---\n", 2)[2])))
    return figures, {figure for figure in figures if not any(is_shown(value, figure) for value in values)}


def numbers_in(content):
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from numbers_in(value)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield content


def is_shown(value, figure):
    """Whether a figure is a value, or this as a percentage or in minutes, rounded to the figure's digits."""
    shown, digits = float(figure.replace(",", "")), len(figure.partition(".")[2])
    return any(abs(shown - value * factor) <= 0.51 * 10**-digits for factor in (1, 100, 1 / 60))


@pytest.fixture(scope="module")
def publication(evaluated):
    return prepare(evaluated, REPO, license="apache-2.0")


def text_of(publication):
    return publication.card.split("---\n", 2)[2]


def test_every_figure_of_the_card_is_in_a_result_file_beside_it(publication):
    figures, untraced = untraced_figures(publication)
    assert untraced == set()
    assert {"4", "12", "1,030,272"} <= figures  # steps, samples and parameters
    assert len(figures) > 12


def test_results_are_those_of_the_result_file(publication, evaluated):
    metrics = read_json(evaluated.parent / "evaluation" / "metrics.json")
    overall, blank = metrics["overall"], metrics["blank_images"]["overall"]
    for label, name, count in (
        ("open recall", "open_recall", "num_open"),
        ("closed accuracy", "closed_accuracy", "num_closed"),
    ):
        low, high = overall["intervals"][name]
        row = f"| {label} | {overall[name]:.1f} | {low:.1f} to {high:.1f} | {overall[count]} | {blank[name]:.1f} |"
        assert row in publication.card


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


def test_card_names_data_seed_objective_and_hardware(publication):
    text = text_of(publication)
    assert re.search(r"`train\.json` \(fingerprint `[0-9a-f]{12}`\)", text)
    assert "drew with seed 0: no patient is in them" in text
    assert "plus 1 times an alignment loss (`multi_graph`, after arXiv:2410.02615) between image nodes" in text
    assert re.search(r"\| hardware \| \d+ CPU cores", text)
    assert "It has seen generated phantoms only" in text
    assert "![Losses, matching accuracy and recall over the steps of training](curves.png)" in text


def test_card_says_that_a_gradient_ratio_and_not_the_weight_set_the_strength(evaluated, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(evaluated, folder)
    record = read_json(folder / "run.json")
    asked = {"alignment_gradient_ratio": 9.0, "alignment_weight": 1.0, "alignment_image_node": "answer_state"}
    record["starts"][-1]["arguments"] |= asked
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    text = write_model_card(folder, "someone/mini").text
    assert "between image nodes (`answer_state`)" in text
    assert "9 times the norm of the language-modeling loss's" in text
    assert "plus 1 times" not in text


def test_card_of_a_run_without_alignment_claims_none_whatever_the_recipe_asked_for(evaluated, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(evaluated, folder)
    record = read_json(folder / "run.json")
    record["starts"][-1]["arguments"] |= {"alignment_gradient_ratio": 0.25, "alignment_weight": 0.0}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    text = write_model_card(folder, "someone/mini").text
    assert "The loss is next-token prediction alone, without alignment." in text
    assert "an alignment loss" not in text


def test_the_card_says_what_its_intervals_are_over(publication, evaluated):
    metrics = read_json(evaluated.parent / "evaluation" / "metrics.json")
    number = metrics["overall"]["num_clusters"]
    assert f"95% interval: bootstrap over {number} images, each with all its questions." in publication.card


def test_a_model_no_better_than_a_constant_answer_is_said_to_be_so(publication, evaluated):
    metrics = read_json(evaluated.parent / "evaluation" / "metrics.json")
    low = metrics["overall"]["intervals"]["closed_accuracy"][0]
    is_shown_better = low > metrics["constant_answer"]["closed_accuracy"]
    assert ("not shown to be better than one constant answer" in publication.card) != is_shown_better


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


def test_an_evaluation_of_other_weights_is_not_found_and_refused_where_it_is_named(evaluated, tmp_path):
    other = tmp_path / "runs" / "model"
    shutil.copytree(evaluated, other)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    shutil.copytree(evaluated.parent / "evaluation", other.parent / "evaluation")
    assert [found.file for found in read_evaluations(evaluated)] == ["evaluation/phantoms_test/metrics.json"]
    assert read_evaluations(other) == []
    with pytest.raises(ValueError, match="not an evaluation of the current model in"):
        prepare(other, REPO, license="mit", evaluations=[other.parent / "evaluation"])


def test_two_evaluations_of_the_same_questions_are_refused(evaluated):
    folder = evaluated.parent / "evaluation"
    with pytest.raises(ValueError, match="second evaluation of phantoms_test"):
        read_evaluations(evaluated, [folder, folder])


def test_a_resumed_run_on_accelerators_is_told(evaluated, tmp_path):
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


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason="needs ../shared/data/vqa_rad")
def test_a_card_names_leaked_questions_and_shows_no_image_of_a_benchmark(evaluated, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(evaluated, model)
    arguments = ["--model", str(model), "--benchmark", "vqa_rad", "--data", str(VQA_RAD), "--limit", "4"]
    evaluate([*arguments, "--no_blank_images", "--output", str(tmp_path / "evaluation")])
    publication = prepare(model, REPO, license="mit")
    assert [name for name in publication.contents.files if name.endswith(".png")] == ["curves.png"]
    assert "Only the first 4 questions were asked" in publication.card
    assert "test images and" in publication.card
