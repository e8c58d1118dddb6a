"""Arguments of `eval/run.py`."""

from dataclasses import dataclass, field

from logramed.eval.benchmarks import BENCHMARKS, get_benchmark
from logramed.eval.volumes import VolumeOptions
from logramed.eval.volumes.options import SLICES_HELP, TOKENS_HELP, WINDOW_HELP


MULTIPLE_CHOICE_METHODS = ("likelihood", "text")
USAGE = "--benchmark NAME --data FOLDER --output FOLDER (--model MODEL | --predictions FILE) [--argument VALUE ...]"
GROUPS = {
    "Which questions": "benchmark data split subset limit on_bad_row",
    "Who answers": "model adapter trust_remote_code predictions blank_predictions missing_as_empty system",
    "How a model is asked": "batch_size max_new_tokens stop_string yes_no_hint multiple_choice blank_images",
    "How DICOM and NIfTI volumes are shown": "slices window volume_tokens",
    "The judge of chat answers": "judge_url judge_model judge_concurrency",
    "What is written": "output images grounding",
}


@dataclass
class EvaluationArguments:
    """Arguments of `eval/run.py`, from the command line."""

    benchmark: str = field(metadata={"help": f"Name of the benchmark: {', '.join(BENCHMARKS)}."})
    data: str = field(metadata={"help": "Folder with the files of the benchmark, or its Hub id."})
    output: str = field(metadata={"help": "Folder for the answers, figures and report."})
    model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of LoGra-Med or another image-text-to-text model, or folder of an adapter."
        },
    )
    adapter: str | None = field(default=None, metadata={"help": "Folder or Hub id of a PEFT adapter for `model`."})
    predictions: str | None = field(
        default=None, metadata={"help": "File with the answers of another system, instead of `model`."}
    )
    blank_predictions: str | None = field(
        default=None, metadata={"help": "File with that system's answers about blank images."}
    )
    missing_as_empty: bool = field(
        default=False, metadata={"help": "Count questions without an answer in `predictions` as wrong."}
    )
    system: str | None = field(default=None, metadata={"help": "Name of the model or system in tables and plots."})
    split: str | None = field(default=None, metadata={"help": "Split of the benchmark. By default its test split."})
    subset: str | None = field(
        default=None,
        metadata={
            "help": "Part of the benchmark: a language of slake, a section of report, a data set of omnimedvqa, ..."
        },
    )
    on_bad_row: str = field(
        default="raise",
        metadata={
            "help": "What to do about a question that cannot be used, such as one without its image: `raise` stops "
            "with an error that names it, `skip` leaves it out and says so in the report.",
            "choices": ["raise", "skip"],
        },
    )
    window: str = field(default="auto", metadata={"help": WINDOW_HELP})
    slices: str = field(default="uniform", metadata={"help": SLICES_HELP})
    volume_tokens: int = field(default=256, metadata={"help": TOKENS_HELP})
    limit: int | None = field(default=None, metadata={"help": "Ask only the first N questions."})
    batch_size: int = field(default=16, metadata={"help": "Questions asked at once. Lower it if memory runs out."})
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "Maximum tokens in an answer. By default 32 (VQA), 64 (options), 512 (chat, reports)."},
    )
    stop_string: str | None = field(
        default=None,
        metadata={
            "help": 'Text that ends an answer, such as "###" for LLaVA-Med v1.0 models. By default the '
            "`stop_string` of the model's processor, if it has one; an empty text turns that off."
        },
    )
    yes_no_hint: str = field(
        default="", metadata={"help": "Text added to each yes/no question, if the model was trained with one."}
    )
    multiple_choice: str = field(
        default="likelihood",
        metadata={"help": "How an option is chosen: by its likelihood or from the text of the answer."},
    )
    blank_images: bool = field(
        default=True, metadata={"help": "Also ask with uniform grey images, to see what is known without the images."}
    )
    grounding: bool = field(
        default=False,
        metadata={
            "help": "Also measure whether the model's image weights for a question lie in the box of the thing it "
            "names (slake has boxes), and draw the image regions that some questions are matched to."
        },
    )
    images: bool = field(default=True, metadata={"help": "Show small images of the worst questions in the report."})
    judge_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible URL of the judge for chat answers."}
    )
    judge_model: str | None = field(default=None, metadata={"help": "Name of the judge model on that server."})
    judge_concurrency: int = field(default=4, metadata={"help": "Number of concurrent requests to the judge."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with the model."})

    def __post_init__(self) -> None:
        VolumeOptions(self.slices, self.window, self.volume_tokens)  # raises if invalid
        get_benchmark(self.benchmark)
        if (self.model is None) == (self.predictions is None):
            raise ValueError("Pass either a `model` to ask or a file of `predictions` to score.")
        if self.grounding and self.model is None:
            raise ValueError("`grounding` needs a `model`: answers do not show where a model looked.")
        for name, needed in ("adapter", "model"), ("blank_predictions", "predictions"), ("judge_url", "judge_model"):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"`{name}` needs `{needed}`.")
        if self.missing_as_empty and self.predictions is None:
            raise ValueError("`missing_as_empty` needs `predictions`.")
        if self.multiple_choice not in MULTIPLE_CHOICE_METHODS:
            raise ValueError(
                f"`multiple_choice` must be one of {', '.join(MULTIPLE_CHOICE_METHODS)}, got {self.multiple_choice!r}."
            )
        for name in ("batch_size", "max_new_tokens", "limit", "judge_concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
