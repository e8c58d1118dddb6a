"""The study's arms, their runs, and the comparisons in PROTOCOL.md."""

from dataclasses import dataclass, field, replace
from typing import Any


PLAIN, PRIMARY, PERMUTED, EXTENDED_TARGETS = "plain", "answer_states", "permuted", "extended_targets"
# Placeholder for the sentence encoder's folder in the arguments of an arm.
TEXT_ENCODER = "TEXT_ENCODER"
MAX_TURNS = 8  # per conversation and step

ANSWER_STATES = {
    "alignment_image_node": "answer_state",
    "alignment_granularity": "turn",
    "alignment_text_encoder": TEXT_ENCODER,
    "alignment_texts": "question_answer",
    "alignment_head": "mlp",
    "alignment_loss": "multi_graph",
    "alignment_schedule": "constant",
}
OWN_TEXT_SPACE = {
    "alignment_image_node": "projector",
    "alignment_granularity": "sample",
    "alignment_text_encoder": "self",
    "alignment_texts": "answer_and_extended",
    "alignment_schedule": "constant",
}


@dataclass(frozen=True)
class Arm:
    """
    One way to train: arguments of `logramed-train` in addition to those that all arms share, the tuned argument that
    sets the strength of the alignment, and the content of the training file: "as_is", "permuted" (partners) or
    "extended_targets".
    """

    arguments: dict[str, Any]
    strength: str | None = "alignment_gradient_ratio"
    data: str = "as_is"


ARMS = {
    PLAIN: Arm({"alignment_weight": 0}, strength=None),
    PRIMARY: Arm(ANSWER_STATES),
    # The file's extended answers are the permuted partners: questions and answers of other turns.
    PERMUTED: Arm({**ANSWER_STATES, "alignment_texts": "extended"}, data="permuted"),
    # Twice the turns per step, so that it sees as many short answers as any other arm.
    EXTENDED_TARGETS: Arm(
        {"alignment_weight": 0, "max_turns": 2 * MAX_TURNS},
        strength=None,
        data="extended_targets",
    ),
    "infonce": Arm({**ANSWER_STATES, "alignment_loss": "infonce"}),
    "first_order": Arm({**ANSWER_STATES, "alignment_loss": "first_order"}),
    "former_default": Arm({**OWN_TEXT_SPACE, "alignment_loss": "multi_graph"}, strength="alignment_weight"),
    "extended_answers": Arm({**ANSWER_STATES, "alignment_texts": "extended"}),
    "paper_form": Arm({**OWN_TEXT_SPACE, "alignment_loss": "paper"}, strength="alignment_weight"),
    "no_head": Arm({**ANSWER_STATES, "alignment_head": "none"}),
    # The gradient ratio is only measured at answer states, so other nodes have a fixed weight.
    "language_model_nodes": Arm(
        {**ANSWER_STATES, "alignment_image_node": "language_model"}, strength="alignment_weight"
    ),
    "projector_nodes": Arm({**ANSWER_STATES, "alignment_image_node": "projector"}, strength="alignment_weight"),
}


def arm_of(name: str) -> Arm:
    """
    The arm with this name in `ARMS`, or for runs outside the plan an arm with changed arguments.

    Raises:
        ValueError: If the arm is unknown, or an argument has no value.

    Example:
        >>> arm_of("answer_states+alignment_schedule=cosine").arguments["alignment_schedule"]
        'cosine'
    """
    known, *changes = name.split("+")
    if known not in ARMS:
        raise ValueError(f"unknown arm {known!r}: the arms are {', '.join(ARMS)}")
    pairs = [change.partition("=") for change in changes]
    if any(not argument or not value for argument, _, value in pairs):
        raise ValueError(f"{name!r}: write +ARGUMENT=VALUE after the arm for each argument of logramed-train")
    return replace(ARMS[known], arguments={**ARMS[known].arguments, **{name: value for name, _, value in pairs}})


SHARES = (10, 40, 100)  # percent of the training images
MANY_SEEDS, SEEDS, FEW_SEEDS = tuple(range(8)), tuple(range(5)), tuple(range(3))
TUNING_SEED = 100  # of no run scored on the test split
# Steps relative to those chosen at 10% of SLAKE, the same for all arms.
STEPS_FACTOR = {10: 1, 40: 2, 100: 3}


@dataclass(frozen=True)
class Run:
    """
    One run of the study: the model ("scratch" or "mini"); the data ("slake", "vqa_rad" by image, "phantoms", or
    "pretraining": pre-training on VQA-RAD and phantoms, then plain fine-tuning on all of SLAKE) and the percentage of
    its training images; the arm, as for `arm_of`; the seed of images, weights and order; and the settings: "own" (the
    arm's best), "plain" (plain's best learning rate, steps and weight decay), "trialN" during tuning, or for a run
    outside the plan its values, as for `parse_settings`.
    """

    model: str
    data: str
    share: int
    arm: str
    seed: int
    settings: str = "own"

    @property
    def name(self) -> str:
        return f"{self.model}-{self.data}-{self.share}-{self.arm}-{self.settings}-seed{self.seed}"


@dataclass(frozen=True)
class Part:
    """Runs of several arms with everything else equal."""

    title: str
    model: str
    data: str
    shares: tuple[int, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = field(default=("own",))

    def runs(self) -> list[Run]:
        return [
            Run(self.model, self.data, share, arm, seed, settings)
            for share in self.shares
            for settings in self.settings
            for seed in self.seeds
            for arm in self.arms
            if settings == "own" or arm != PLAIN
        ]


# In the order in which they run: the main claim's runs come first.
PARTS = (
    Part("SLAKE 10%, primary", "scratch", "slake", (10,), (PLAIN, PRIMARY, PERMUTED), MANY_SEEDS),
    Part("SLAKE 10%, at plain's settings", "scratch", "slake", (10,), (PRIMARY,), MANY_SEEDS, ("plain",)),
    Part(
        "SLAKE 10%, objectives and nodes",
        "scratch",
        "slake",
        (10,),
        ("infonce", "first_order", "former_default", "extended_answers"),
        SEEDS,
    ),
    Part("SLAKE 10%, further targets", "scratch", "slake", (10,), (EXTENDED_TARGETS,), SEEDS),
    Part("SLAKE 40% and 100%", "scratch", "slake", (40, 100), (PLAIN, PRIMARY), SEEDS),
    Part("mini, SLAKE 10%", "mini", "slake", (10,), (PLAIN, PRIMARY), FEW_SEEDS),
    Part("pre-training 10%", "scratch", "pretraining", (10,), (PLAIN, PRIMARY), FEW_SEEDS),
    Part("VQA-RAD by image, 100%", "scratch", "vqa_rad", (100,), (PLAIN, PRIMARY), FEW_SEEDS),
    Part("phantoms, 100%", "scratch", "phantoms", (100,), (PLAIN, PRIMARY), FEW_SEEDS),
    Part(
        "SLAKE 10%, further arms",
        "scratch",
        "slake",
        (10,),
        ("paper_form", "no_head", "language_model_nodes", "projector_nodes"),
        FEW_SEEDS,
    ),
)


def planned_runs() -> list[Run]:
    """All runs in PROTOCOL.md, in order."""
    return [run for part in PARTS for run in part.runs()]


def smoke_runs() -> list[Run]:
    """Each arm once, and each model and kind of data once."""
    runs = [Run("scratch", "slake", 10, arm, 0) for arm in ARMS]
    runs += [Run("scratch", data, 10, PRIMARY, 0) for data in ("vqa_rad", "phantoms")]
    return [*runs, Run("scratch", "pretraining", 10, PRIMARY, 0), Run("mini", "slake", 10, PRIMARY, 0)]


@dataclass(frozen=True)
class Side:
    """The runs of all seeds on one side of a comparison."""

    arm: str
    model: str = "scratch"
    data: str = "slake"
    share: int = 10
    settings: str = "own"

    def __str__(self) -> str:
        return f"{self.arm} ({self.model}, {self.data} {self.share}%, {self.settings} settings)"


@dataclass(frozen=True)
class Comparison:
    """First minus second, over all questions and the seeds that both have."""

    first: Side
    second: Side


PRIMARY_COMPARISON = Comparison(Side(PRIMARY), Side(PLAIN))
# Holm's correction applies to these; all other differences are exploratory.
SECONDARY_COMPARISONS = (
    Comparison(Side(PRIMARY, settings="plain"), Side(PLAIN)),
    *(
        Comparison(Side(PRIMARY), Side(arm))
        for arm in (PERMUTED, EXTENDED_TARGETS, "infonce", "first_order", "former_default")
    ),
    *(Comparison(Side(PRIMARY, share=share), Side(PLAIN, share=share)) for share in (40, 100)),
    Comparison(Side(PRIMARY, share=40), Side(PLAIN, share=100)),
    Comparison(Side(PRIMARY, model="mini"), Side(PLAIN, model="mini")),
    Comparison(Side(PRIMARY, data="pretraining"), Side(PLAIN, data="pretraining")),
)
