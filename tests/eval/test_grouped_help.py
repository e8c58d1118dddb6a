from dataclasses import dataclass, field, fields

import pytest
from transformers import HfArgumentParser

from logramed.eval import arguments as evaluation
from logramed.eval.grouped_help import add_grouped_help
from logramed.eval.run import main as evaluate
from logramed.trainer import arguments as training
from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.train import main as train


@dataclass
class Own:
    model: str = field(metadata={"help": "What is asked. 100%% of it is loaded, whatever it weighs."})
    rate: float = field(default=0.5, metadata={"help": "Share of the rows."})
    hidden: bool = field(default=False, metadata={"help": "Seldom needed."})


def parser(groups):
    made = HfArgumentParser(Own, prog="logramed-x", add_help=False)
    add_grouped_help(made, groups, "--model MODEL", "Ask.")
    return made


def printed(call, capsys):
    with pytest.raises(SystemExit) as ended:
        call()
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_has_the_groups_and_says_how_many_arguments_it_leaves_out(capsys):
    page = printed(lambda: parser({"Asking": "model rate"}).parse_args(["--help"]), capsys)
    assert page.index("usage: logramed-x --model MODEL") < page.index("Asking:") < page.index("--model TEXT")
    assert "100% of it is loaded, whatever it weighs. (required)" in page
    assert "Share of the rows. (default: 0.5)" in page
    assert "--hidden" not in page
    assert "--help_all lists 1 further arguments" in page


def test_help_all_lists_every_argument(capsys):
    page = printed(lambda: parser({"Asking": "model rate"}).parse_args(["--help_all"]), capsys)
    assert "--hidden true|false" in page


def test_where_all_are_in_groups_there_is_no_help_all():
    made = parser({"Asking": "model rate", "Seldom": "hidden"})
    assert made.parse_known_args(["--model", "m", "--help_all"])[1] == ["--help_all"]


def test_a_group_with_an_unknown_argument_is_named():
    with pytest.raises(ValueError, match="The help groups name arguments that do not exist: modle"):
        parser({"Asking": "modle"})


def test_arguments_are_parsed_as_before():
    (own,) = parser({"Asking": "model"}).parse_args_into_dataclasses(["--model", "m", "--rate", "0.25"])
    assert own == Own("m", 0.25)


def names(groups):
    return [name for text in groups.values() for name in text.split()]


def test_every_argument_of_the_evaluation_is_in_one_group(capsys):
    assert sorted(names(evaluation.GROUPS)) == sorted(field.name for field in fields(evaluation.EvaluationArguments))
    page = printed(lambda: evaluate(["--help"]), capsys)
    assert [title for title in evaluation.GROUPS if f"{title}:" not in page] == []


def test_every_argument_of_our_own_is_in_one_group_of_training_help(capsys):
    shown = names(training.GROUPS)
    own = {field.name for field in fields(AlignmentConfig)}
    for kind in (training.ModelArguments, training.DataArguments, training.LoGraMedTrainingArguments):
        own |= set(kind.__annotations__)
    former = {"gradient_checkpointing"}  # `activation_checkpointing` is what TRL calls it now
    assert own - former <= set(shown)
    assert len(shown) == len(set(shown))
    page = printed(lambda: train(["--help"]), capsys)
    assert page.count("\n") < 250
    everything = printed(lambda: train(["--help_all"]), capsys)
    assert "--fsdp_config" not in page
    assert "--fsdp_config" in everything
