import json

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel

from logramed import LoGraMedForConditionalGeneration, LoGraMedImageProcessor, LoGraMedProcessor
from logramed.trainer.build_model import new_model
from logramed.trainer.train import RECIPE_FOLDER, find_recipe, main, parse_arguments
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny_models import TOWERS


pytestmark = pytest.mark.usefixtures("default_text_encoder")


NEW_MODEL = {
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "num_neighbors": 2,
    "vocab_size": 300,
}


def write_recipe(folder, data_file, **values):
    recipe = {
        **NEW_MODEL,
        "train_data": str(data_file),
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": "1e-3",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "max_new_tokens": 2,
        "alignment_preset": "paper",  # needs no sentence encoder
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, **values}))
    return str(path)


def test_recipe_trains_a_new_model_and_leaves_all_that_was_promised(tmp_path, data_file, capsys):
    recipe = write_recipe(
        tmp_path,
        data_file,
        validation_data=str(data_file),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="closed_accuracy",
    )
    assert main([recipe]) == 0
    run = tmp_path / "run"
    results = json.loads((run / "train_metrics.json").read_text())
    steps = [entry for entry in results["log_history"] if "language_modeling_loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    assert {"loss", "alignment_loss", "matching_accuracy"} <= set(steps[0])
    assert {"eval_closed_accuracy", "eval_open_recall", "eval_recall_at_1_image_to_answer"} <= set(results["metrics"])
    assert results["num_validation_questions"] == 16
    with Image.open(run / "curves.png") as picture:
        assert picture.size[0] > 500
    model = LoGraMedForConditionalGeneration.from_pretrained(run)
    assert LoGraMedProcessor.from_pretrained(run).num_image_tokens == model.config.num_image_tokens == 4
    assert "On validation: validation loss" in capsys.readouterr().out


def test_a_new_language_model_is_trained_behind_a_pretrained_tower(tmp_path, data_file):
    tower = AutoModel.from_config(TOWERS["dinov2"]())
    tower.save_pretrained(tmp_path / "tower")
    LoGraMedImageProcessor(size=8).save_pretrained(tmp_path / "tower")
    values = {"vision_config": None, "vision": str(tmp_path / "tower"), "train": "projector,language"}
    main([write_recipe(tmp_path, data_file, logramed_config={"image_token_pooling": 1}, **values)])
    model = LoGraMedForConditionalGeneration.from_pretrained(tmp_path / "run")
    assert model.config.num_image_tokens == 1
    weights = model.model.vision_tower.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in tower.state_dict().items() if name in weights)
    assert weights.keys() <= tower.state_dict().keys()


def test_command_line_overrides_the_recipe(tmp_path, data_file):
    recipe = write_recipe(tmp_path, data_file)
    model, data, training = parse_arguments([recipe, "--max_steps", "7", "--alignment_weight", "0.5"])
    assert (training.max_steps, training.alignment_weight, training.learning_rate) == (7, 0.5, 1e-3)
    assert model.vision_config["patch_size"] == 4
    assert data.on_bad_row == "raise"


def test_training_goes_on_from_a_saved_folder(tmp_path, data_file):
    main([write_recipe(tmp_path, data_file)])
    further = [
        *("--model", str(tmp_path / "run"), "--train_data", str(data_file), "--output_dir", str(tmp_path / "more")),
        *("--max_steps", "1", "--per_device_train_batch_size", "4", "--report_to", "none", "--use_cpu", "true"),
    ]
    main(further)
    assert LoGraMedForConditionalGeneration.from_pretrained(tmp_path / "more").config.image_token_id == 4


def test_first_stage_trains_on_its_data_before_the_recipes_own(tmp_path, data_file, monkeypatch):
    rows = json.loads(data_file.read_text())
    for row in rows:
        row["conversations"][1]["value"] = "stomach"
        del row["conversations_long"]
    (tmp_path / "first.json").write_text(json.dumps(rows))
    stages = []
    train_method = LoGraMedTrainer.train

    def note(trainer, **options):
        answers = {row["messages"][1]["content"][0]["text"] for row in trainer.train_dataset}
        before = trainer.model.lm_head.weight.detach().clone()
        result = train_method(trainer, **options)
        stages.append((answers, trainer.args.alignment_weight, before, trainer.model.lm_head.weight.detach().clone()))
        return result

    monkeypatch.setattr(LoGraMedTrainer, "train", note)
    options = {"first_stage_data": str(tmp_path / "first.json"), "first_stage_epochs": 1, "max_steps": -1}
    main([write_recipe(tmp_path, data_file, num_train_epochs=1, **options)])
    (first, first_weight, _, after_first), (second, second_weight, before_second, _) = stages
    assert first == {"stomach"}
    assert "left lung" in second
    assert (first_weight, second_weight) == (0.0, 1.0)
    assert torch.equal(after_first, before_second)


def test_position_embeddings_of_a_new_tower_are_scaled(data_file):
    plain, scaled = (
        new_model(
            NEW_MODEL["vision_config"], NEW_MODEL["text_config"], ["some text"], 300, position_embedding_scale=scale
        )[0].model.vision_tower.state_dict()
        for scale in (1.0, 8.0)
    )
    differing = [name for name, value in plain.items() if not torch.equal(value, scaled[name])]
    assert differing == ["embeddings.position_embedding.weight"]
    torch.testing.assert_close(scaled[differing[0]], 8 * plain[differing[0]])


def test_a_run_without_a_logged_step_leaves_its_model_and_no_curves(tmp_path, data_file):
    assert main([write_recipe(tmp_path, data_file, logging_steps=10)]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "train_metrics.json").is_file()
    assert not (tmp_path / "run" / "curves.png").exists()


def test_validation_share_holds_out_rows(tmp_path, data_file):
    main([write_recipe(tmp_path, data_file, validation_share=0.25)])
    results = json.loads((tmp_path / "run" / "train_metrics.json").read_text())
    assert results["num_validation_questions"] == 4  # of two rows
    assert results["num_train_samples"] == 6


def test_skipped_rows_are_counted_and_listed(tmp_path, data_file, capsys):
    rows = json.loads(data_file.read_text())
    rows[3]["image"] = "missing.png"
    data_file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"row 3 \(id '3'\), field `image`.*missing.png"):
        main([write_recipe(tmp_path, data_file)])
    main([write_recipe(tmp_path, data_file), "--on_bad_row", "skip"])
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped_rows.jsonl").read_text().splitlines()]
    assert [entry["row_id"] for entry in listed] == ["3"]
    assert "Skipped 1 rows" in capsys.readouterr().out


def test_skipped_rows_of_validation_and_first_stage_are_listed_apart(tmp_path, data_file):
    rows = json.loads(data_file.read_text())
    rows[5]["image"] = "missing.png"
    (tmp_path / "other.json").write_text(json.dumps(rows))
    other = {"validation_data": str(tmp_path / "other.json"), "first_stage_data": str(tmp_path / "other.json")}
    main([write_recipe(tmp_path, data_file, on_bad_row="skip", **other)])
    for suffix in ("_validation", "_first_stage"):
        [line] = (tmp_path / "run" / f"skipped_rows{suffix}.jsonl").read_text().splitlines()
        assert json.loads(line)["row_id"] == "5"
    assert not (tmp_path / "run" / "skipped_rows.jsonl").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "somewhere"}, "`model` names a model that exists, and vision_config and text_config a new one"),
        ({"vision": "tower"}, "`vision` names a tower that exists, and `vision_config` a new one"),
        ({"vision": "tower", "vision_config": None, "text_config": None}, "Give `model`, or both"),
        ({"text_config": None}, "Give `model`, or both `vision_config` and `text_config`"),
        ({"validation_share": 1.5}, "`validation_share` is a share from 0 to below 1; got 1.5"),
        ({"alignment_wieght": 1.0}, "alignment_wieght"),
    ],
)
def test_arguments_that_do_not_fit_are_named(tmp_path, data_file, values, words):
    with pytest.raises(ValueError, match=words):
        parse_arguments([write_recipe(tmp_path, data_file, **values)])


def test_recipe_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(FileNotFoundError, match=r"no recipe nothing.yaml.*quickstart.yaml, .*slake_small.yaml"):
        find_recipe("nothing.yaml")


@pytest.mark.parametrize("path", sorted(RECIPE_FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_parse_and_are_headed_by_their_command(path):
    # Where there is no accelerator, 16-bit training is refused or left out; the rest is parsed as it stands.
    parse_arguments([str(path), "--use_cpu", "true", "--fp16", "false"])
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"python trainer/train.py trainer/recipes/{path.name}" in line for line in head)
