"""The commands of the study; their arguments are tried on the parsers of the product."""

from pathlib import Path

import pytest
from transformers import HfArgumentParser

from logramed.eval.arguments import EvaluationArguments
from logramed.trainer import build_model
from logramed.trainer.study.arms import ARMS, PLAIN, PRIMARY, Run, planned_runs
from logramed.trainer.study.commands import Paths, build_command, evaluation_command, training_commands
from logramed.trainer.study.settings import Settings, settings_of
from logramed.trainer.train import parse_arguments


PATHS = Paths(Path("/study"), Path("/parts"), Path("/slake"), Path("/vqa_rad"))
PLAIN_SETTINGS = Settings(1e-3, 400, 0.05)
ALIGNED_SETTINGS, WEIGHTED_SETTINGS = Settings(2e-3, 200, 0.01, 6.0), Settings(2e-3, 200, 0.01, 1.0)
SETTINGS = {
    "scratch": {PLAIN: PLAIN_SETTINGS, PRIMARY: ALIGNED_SETTINGS, "former_default": WEIGHTED_SETTINGS},
    "mini": {PLAIN: PLAIN_SETTINGS, PRIMARY: ALIGNED_SETTINGS},
}


def options(command):
    words = command[3:]
    assert len(words) % 2 == 0
    return dict(zip(words[::2], words[1::2], strict=True))


def commands_of(run):
    return training_commands(run, PATHS, settings_of(run, SETTINGS), PLAIN_SETTINGS)


def test_arms_of_a_seed_differ_in_nothing_but_what_they_are_about():
    given = {arm: options(commands_of(Run("scratch", "slake", 10, arm, 0, "plain"))["model"]) for arm in ARMS}
    may_differ = {"--train_data", "--output_dir", "--alignment_gradient_ratio", "--alignment_weight"}
    for name, arm in ARMS.items():
        names = may_differ | {f"--{argument}" for argument in arm.arguments}
        names |= {f"--{argument}" for argument in ARMS[PLAIN].arguments}
        for argument in given[name].keys() | given[PLAIN].keys():
            if argument not in names:
                assert given[name].get(argument) == given[PLAIN].get(argument), (name, argument)


def test_primary_arm_gets_the_encoder_and_a_gradient_ratio():
    given = options(commands_of(Run("scratch", "slake", 10, PRIMARY, 2))["model"])
    assert given["--alignment_text_encoder"] == "/parts/text_encoder"
    assert given["--alignment_gradient_ratio"] == "6.0"
    assert given["--model"] == "/study/untrained/scratch_seed2"
    assert given["--train_data"] == "/study/runs/scratch-slake-10-answer_states-own-seed2/model.json"
    assert given["--resume_from_checkpoint"] == "true"
    assert "--alignment_weight" not in given


def test_steps_grow_with_the_share():
    def steps(share):
        return options(commands_of(Run("scratch", "slake", share, PLAIN, 0))["model"])["--max_steps"]

    assert [steps(share) for share in (10, 40, 100)] == ["400", "800", "1200"]


def test_pretraining_is_aligned_and_its_fine_tuning_is_plain_at_plains_settings():
    commands = commands_of(Run("scratch", "pretraining", 10, PRIMARY, 0))
    first, second = map(options, commands.values())
    assert list(commands) == ["pretrained", "model"]
    assert first["--alignment_image_node"] == "answer_state"
    assert first["--model"] == "/study/untrained/scratch_seed0"
    assert second["--model"] == first["--output_dir"]
    assert second["--alignment_weight"] == "0"
    assert "--alignment_image_node" not in second
    assert (first["--max_steps"], second["--max_steps"]) == ("200", "1200")
    assert (first["--learning_rate"], second["--learning_rate"]) == ("0.002", "0.001")


def test_mini_is_trained_by_adapters_and_the_model_from_scratch_in_full():
    mini = options(commands_of(Run("mini", "slake", 10, PRIMARY, 0))["model"])
    scratch = options(commands_of(Run("scratch", "slake", 10, PRIMARY, 0))["model"])
    assert mini["--use_peft"] == "true"
    assert "--train" not in mini
    assert scratch["--train"] == "projector,language"
    assert "--use_peft" not in scratch


ONE_OF_EACH = {(run.model, run.arm, run.data == "pretraining"): run for run in planned_runs()}


@pytest.mark.parametrize("run", ONE_OF_EACH.values(), ids=lambda run: run.name)
def test_training_accepts_the_arguments(run):
    parsed = [parse_arguments([*command[3:], "--use_cpu", "true"]) for command in commands_of(run).values()]
    _, data, training = parsed[0]
    assert data.max_turns == ARMS[run.arm].arguments.get("max_turns", 8)
    assert (training.alignment_weight == 0) == (ARMS[run.arm].strength is None)
    if run.data == "pretraining":
        _, data, training = parsed[1]
        assert (data.max_turns, training.alignment_weight) == (8, 0)


@pytest.mark.parametrize(
    ("data", "split", "expected"),
    [
        ("slake", "test", ("slake", "/slake", "test")),
        ("pretraining", "validation", ("slake", "/slake", "validation")),
        ("vqa_rad", "test", ("vqa_rad", "/vqa_rad", "by_image_test")),
        ("phantoms", "test", ("phantoms", "/study/data/generated_phantoms", "test")),
    ],
)
def test_evaluation_asks_with_and_without_sight_on_the_split(data, split, expected):
    command = evaluation_command(Run("scratch", data, 100, PLAIN, 0), PATHS, split)
    (given,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(command[3:])
    assert (given.benchmark, given.data, given.split) == expected
    assert given.blank_images
    assert given.limit is None
    assert given.output.endswith(f"evaluation_{split}")


def test_trials_are_asked_with_sight_alone():
    command = evaluation_command(Run("scratch", "slake", 10, PLAIN, 100, "trial0"), PATHS, "validation")
    (given,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(command[3:])
    assert not given.blank_images


@pytest.mark.parametrize(("model", "called"), [("mini", "join_models"), ("scratch", "join_new_language_model")])
def test_untrained_models_are_built_by_arguments_that_exist(model, called, monkeypatch, tmp_path):
    asked = []
    for name in ("join_models", "join_new_language_model"):
        monkeypatch.setattr(
            build_model, name, lambda *args, name=name, **values: asked.append((name, values)) or 1 / 0
        )
    command = build_command(Run(model, "slake", 10, PLAIN, 7), PATHS, tmp_path / "model")
    with pytest.raises(ZeroDivisionError):  # reached the work: the arguments were right
        build_model.main(command[3:])
    [(name, values)] = asked
    assert name == called
    assert (values["seed"], values["image_token_pooling"]) == (7, 4)
