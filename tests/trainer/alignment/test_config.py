from dataclasses import asdict

import pytest
import yaml
from transformers import HfArgumentParser

from logramed.trainer.alignment import GRANULARITIES, AlignmentConfig
from logramed.trainer.arguments import LoGraMedTrainingArguments


# Of every field another value than its default.
OTHER_VALUES = {
    "alignment_weight": 0.5,
    "alignment_preset": "paper",
    "alignment_loss": "infonce",
    "alignment_granularity": "span",
    "alignment_image_node": "answer_state",  # the default, which alone has regions and a gradient ratio
    "alignment_texts": "question_answer_and_extended",
    "alignment_text_encoder": "some/encoder",
    "alignment_regions": True,
    "alignment_head": "none",
    "alignment_gradient_ratio": 0.25,
    "rows_without_image": "language_only",
    "alignment_schedule": "linear",
    "accumulate_graph": True,
    "gather_graph": True,
    "num_neighbors": 3,
    "edge_weight": 0.3,
    "message_weight": 0.2,
    "alignment_margin": 0.1,
    "alignment_temperature": 0.2,
    "edge_temperature": 0.3,
    "graph_dropout": 0.0,
}


def test_command_line_and_yaml_reach_every_field(tmp_path):
    defaults = asdict(AlignmentConfig())
    assert list(OTHER_VALUES) == list(defaults)
    assert [name for name, default in defaults.items() if OTHER_VALUES[name] == default] == ["alignment_image_node"]
    words = [word for name, value in OTHER_VALUES.items() for word in (f"--{name}", str(value))]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(OTHER_VALUES | {"use_cpu": True}))
    parser = HfArgumentParser(LoGraMedTrainingArguments)
    [from_words] = parser.parse_args_into_dataclasses([*words, "--use_cpu", "true"])
    [from_file] = parser.parse_yaml_file(file)
    for arguments in (from_words, from_file):
        assert isinstance(arguments, AlignmentConfig)
        assert {name: getattr(arguments, name) for name in OTHER_VALUES} == OTHER_VALUES


def test_a_preset_gives_what_is_not_given():
    nodes = ("alignment_granularity", "alignment_image_node", "alignment_texts", "alignment_text_encoder")

    def chosen(**values):
        config = AlignmentConfig(**values)
        assert config.alignment_config() == config
        return [getattr(config, name) for name in (*nodes, "alignment_schedule")] + [
            config.alignment_weight,
            config.alignment_gradient_ratio,
        ]

    encoder = "sentence-transformers/all-MiniLM-L6-v2"
    states = ["turn", "answer_state", "question_answer", encoder, "cosine"]
    assert chosen() == [*states, 1.0, 9.0]
    assert chosen(alignment_weight=0.5) == [*states, 0.5, None]
    assert chosen(alignment_weight=0.5, alignment_gradient_ratio=3) == [*states, 0.5, 3]
    assert chosen(alignment_weight=0) == [*states, 0, None]
    assert chosen(alignment_image_node="projector")[1::4] == ["projector", 1.0]  # no ratio without answer states
    assert chosen(alignment_preset="paper") == [
        "sample",
        "projector",
        "answer_and_extended",
        "self",
        "constant",
        1,
        None,
    ]
    assert chosen(alignment_preset="paper", alignment_texts="answer")[2] == "answer"


def test_the_checks_of_both_parents_run():
    with pytest.raises(ValueError, match="`message_weight` must not be negative; got -1"):
        LoGraMedTrainingArguments(message_weight=-1, use_cpu=True)
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        LoGraMedTrainingArguments(load_best_model_at_end=True, eval_strategy="no", save_strategy="steps", use_cpu=True)


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        ({"alignment_loss": "triplet"}, "`alignment_loss` must be one of multi_graph, .*, paper; got 'triplet'"),
        ({"alignment_granularity": "word"}, f"`alignment_granularity` must be one of {', '.join(GRANULARITIES)}; got"),
        ({"alignment_weight": float("nan")}, "`alignment_weight` must not be negative; got nan"),
        ({"edge_weight": -1}, "`edge_weight` must not be negative; got -1"),
        ({"num_neighbors": 0}, "`num_neighbors` must be at least 1; got 0"),
        ({"edge_temperature": 0}, "`edge_temperature` must be at least 0.03; got 0"),
        ({"alignment_granularity": "span", "alignment_texts": "answer"}, "needs `alignment_texts` with `extended`"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, refusal):
    with pytest.raises(ValueError, match=refusal):
        AlignmentConfig(**values)
