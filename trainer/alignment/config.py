"""The settings of the alignment, in one dataclass, and the registry of objectives that `alignment_loss` names."""

from dataclasses import dataclass, field, fields

from .losses import MIN_TEMPERATURE


GRANULARITIES = ("sample", "turn", "span")
IMAGE_NODES = ("projector", "language_model", "answer_state")
# For each choice of `alignment_texts`, the texts that images are aligned with, one graph for each.
TEXTS = {
    "answer": ("answer",),
    "extended": ("extended",),
    "answer_and_extended": ("answer", "extended"),
    "question_answer": ("question_answer",),
    "question_answer_and_extended": ("question_answer", "extended"),
}
SCHEDULES = ("constant", "linear", "cosine")
# Defaults of settings that are not given. `answer_states` was measured to improve answers of a model trained from
# scratch (trainer/study/RESULTS.md); `paper` has the paper's kind of nodes.
PRESETS = {
    "answer_states": {
        "alignment_granularity": "turn",
        "alignment_image_node": "answer_state",
        "alignment_texts": "question_answer",
        "alignment_text_encoder": "sentence-transformers/all-MiniLM-L6-v2",
        "alignment_schedule": "cosine",
    },
    "paper": {
        "alignment_granularity": "sample",
        "alignment_image_node": "projector",
        "alignment_texts": "answer_and_extended",
        "alignment_text_encoder": "self",
        "alignment_schedule": "constant",
    },
}
DEFAULT_GRADIENT_RATIO = 9.0  # for answer states, if no weight is given
ROWS_WITHOUT_IMAGE = ("refuse", "language_only")
# Filled by `register_objective`. `LOSSES` is a view, so that objectives registered later become choices too.
OBJECTIVES: dict[str, type] = {}
LOSSES = OBJECTIVES.keys()
LEAST = {
    "alignment_weight": 0,
    "num_neighbors": 1,
    "edge_weight": 0,
    "message_weight": 0,
    "alignment_margin": 0,
    "alignment_temperature": MIN_TEMPERATURE,
    "edge_temperature": MIN_TEMPERATURE,
}


def register_objective(name: str):
    """
    A decorator that makes a subclass of `AlignmentObjective` the objective of this name, for `alignment_loss`;
    `ValueError` if the name is taken.
    """

    def register(objective: type) -> type:
        if name in OBJECTIVES:
            raise ValueError(
                f"The objective {name!r} already exists, {OBJECTIVES[name].__name__}: choose another name."
            )
        OBJECTIVES[name] = objective
        return objective

    return register


def _setting(default, text: str, choices=None):
    return field(default=default, metadata={"help": text, **({} if choices is None else {"choices": choices})})


@dataclass
class AlignmentConfig:
    """
    Settings of the alignment. `LoGraMedTrainingArguments` inherits every field; `logramed-train --help` lists them.

    Raises:
        ValueError: For an unknown choice, a value out of range, or values that contradict each other.
    """

    alignment_weight: float | None = _setting(
        None,
        "Weight of the alignment loss; that of the language-modeling loss is 1. 0 turns alignment off. By default 1; "
        "with `alignment_gradient_ratio` the weight of the first step alone.",
    )
    alignment_preset: str = _setting(
        "answer_states",
        "Defaults of granularity, image node, texts, text encoder and schedule: `answer_states` (`turn`, "
        "`answer_state`, `question_answer`, all-MiniLM-L6-v2, `cosine`) or `paper` (`sample`, `projector`, "
        "`answer_and_extended`, `self`, `constant`).",
        tuple(PRESETS),
    )
    alignment_loss: str = _setting(
        "multi_graph",
        "Alignment objective. `paper` is the research release's, faults included.",
        LOSSES,
    )
    alignment_granularity: str | None = _setting(
        None,
        "What a node is: a `sample`, a dialogue `turn`, or a `span` (sentence) of an extended answer. A graph has the "
        "nodes of the whole batch.",
        GRANULARITIES,
    )
    alignment_image_node: str | None = _setting(
        None,
        "Feature of an image node: the mean of the image's `projector` features, the mean of its tokens' hidden "
        "states in the `language_model`, or the `answer_state`, the hidden state before an answer, from which the "
        "answer's first token is predicted.",
        IMAGE_NODES,
    )
    alignment_texts: str | None = _setting(
        None,
        "Texts that images are aligned with, one graph for each: the answer, the extended answer, or question and "
        "answer as one text.",
        tuple(TEXTS),
    )
    alignment_text_encoder: str | None = _setting(
        None,
        "Encoder of these texts: the trained model itself (`self`), or a frozen sentence encoder by folder or Hub id, "
        "which encodes each text once.",
    )
    alignment_regions: bool = _setting(
        False,
        "One more graph beside the answer states: the image's projected regions, pooled with the answer state as "
        "query. It is matched with the texts only.",
    )
    alignment_head: str = _setting(
        "auto",
        "Head between image node and loss, which is not saved with the model: an `mlp` of two layers or `none`; "
        "`auto` is `mlp` for answer states and with a text encoder.",
        ("auto", "mlp", "none"),
    )
    alignment_gradient_ratio: float | None = _setting(
        None,
        "Adapt the weight so that the norm of the weighted alignment loss's gradient at the answer states is this "
        "many times the language-modeling loss's. By default 9 for answer states without an `alignment_weight`.",
    )
    rows_without_image: str = _setting(
        "refuse",
        "What to do about rows without an image, which have no node: treat them as bad rows (`refuse`, see "
        "`on_bad_row`), or train on them without alignment (`language_only`).",
        ROWS_WITHOUT_IMAGE,
    )
    alignment_schedule: str | None = _setting(
        None,
        "Schedule of the alignment weight: `constant`, or going to 0 over the run, as a line or half a cosine.",
        SCHEDULES,
    )
    accumulate_graph: bool = _setting(
        False,
        "One graph over all micro-batches of an optimizer step (`gradient_accumulation_steps`) with exact gradients, "
        "at the cost of a second forward pass.",
    )
    gather_graph: bool = _setting(False, "One graph over the micro-batches of all processes, with exact gradients.")
    num_neighbors: int = _setting(5, "Edges from each node, to its nearest neighbours.")
    edge_weight: float | None = _setting(
        None, "Weight of the edge loss; that of the node loss is 1. By default 1 for `multi_graph`, 0 for `infonce`."
    )
    message_weight: float | None = _setting(
        None,
        "Weight of the graph network's messages, which are added to the nodes' features. By default 0.1 for "
        "`multi_graph`, else 0: no message passing.",
    )
    alignment_margin: float | None = _setting(
        None,
        "Margin in training: what the cosine of a true pair must exceed that of others by. By default 0.4, and 0 for "
        "`infonce`.",
    )
    alignment_temperature: float = _setting(0.1, "Temperature of the node loss, for all objectives but `paper`.")
    edge_temperature: float = _setting(0.15, "Temperature of the edge loss, for all objectives but `paper`.")
    graph_dropout: float = _setting(0.1, "Dropout after each layer of the graph network.")

    def __post_init__(self):
        self._fill_in_defaults()
        for setting in fields(AlignmentConfig):
            value, choices = getattr(self, setting.name), setting.metadata.get("choices")
            if choices is not None and value not in choices:
                raise ValueError(f"`{setting.name}` must be one of {', '.join(choices)}; got {value!r}.")
            least = LEAST.get(setting.name)
            if least is not None and value is not None and not value >= least:
                bound = f"be at least {least}" if least else "not be negative"
                raise ValueError(f"`{setting.name}` must {bound}; got {value}.")
        if self.alignment_granularity == "span" and not self.uses_extended_answers:
            raise ValueError(
                "`alignment_granularity='span'` needs `alignment_texts` with `extended`: spans are sentences of "
                "extended answers."
            )
        self._check_nodes()

    def _fill_in_defaults(self):
        for name, value in PRESETS.get(self.alignment_preset, {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.alignment_weight is None:
            if self.alignment_gradient_ratio is None and self.alignment_image_node == "answer_state":
                self.alignment_gradient_ratio = DEFAULT_GRADIENT_RATIO
            self.alignment_weight = 1.0

    def alignment_config(self) -> "AlignmentConfig":
        """Only these settings, also when called on a subclass."""
        return AlignmentConfig(**{setting.name: getattr(self, setting.name) for setting in fields(AlignmentConfig)})

    @property
    def uses_extended_answers(self) -> bool:
        return "extended" in TEXTS[self.alignment_texts]

    @property
    def texts_without_extended(self) -> str:
        """`alignment_texts` without the extended answers, unless there are no other texts."""
        return self.alignment_texts.removesuffix("_and_extended")

    @property
    def uses_question_texts(self) -> bool:
        """Whether a text is a question with its answer."""
        return "question_answer" in TEXTS[self.alignment_texts]

    @property
    def text_kinds(self) -> tuple[str, ...]:
        """The modalities of the texts: a question with its answer counts as `"answer"`."""
        return tuple("extended" if name == "extended" else "answer" for name in TEXTS[self.alignment_texts])

    @property
    def needs_questions(self) -> bool:
        """Whether image regions are pooled by questions that the model encodes as texts."""
        pools = self.alignment_granularity != "sample" and self.alignment_image_node != "answer_state"
        return pools and self.alignment_text_encoder == "self"

    @property
    def uses_head(self) -> bool:
        if self.alignment_head != "auto":
            return self.alignment_head == "mlp"
        return self.alignment_image_node == "answer_state" or self.alignment_text_encoder != "self"

    def _check_nodes(self):
        is_sample = self.alignment_granularity == "sample"
        if is_sample and self.alignment_image_node == "answer_state":
            raise ValueError(
                "`alignment_image_node='answer_state'` needs nodes that are answers: give `alignment_granularity` "
                "`turn` (or `span`)."
            )
        if is_sample and self.uses_question_texts:
            raise ValueError(
                f"`alignment_texts={self.alignment_texts!r}` needs nodes that are turns: give `alignment_granularity` "
                "`turn`."
            )
        if self.alignment_granularity == "span" and self.alignment_texts == "extended":
            raise ValueError(
                "`alignment_granularity='span'` aligns the spans with their turn's answer too: give `alignment_texts` "
                "`answer_and_extended` or `question_answer_and_extended`."
            )
        if self.alignment_regions and self.alignment_image_node != "answer_state":
            raise ValueError(
                "`alignment_regions` needs `alignment_image_node='answer_state'`; with other nodes of turns, the "
                "image node is pooled from regions already."
            )
        if self.alignment_gradient_ratio is None:
            return
        if not self.alignment_gradient_ratio > 0:
            raise ValueError(f"`alignment_gradient_ratio` must be above 0; got {self.alignment_gradient_ratio}.")
        if self.alignment_image_node != "answer_state":
            raise ValueError(
                "`alignment_gradient_ratio` compares gradients at the answer states, so it needs "
                "`alignment_image_node='answer_state'`: give a fixed `alignment_weight` with other nodes."
            )
