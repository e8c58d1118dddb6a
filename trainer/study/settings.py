"""Learning rate, steps, weight decay and strength of each arm: chosen by tuning, and read from `settings.yaml`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from logramed.eval.files import write_whole
from logramed.trainer.study.arms import ARMS, PLAIN, PRIMARY, TUNING_SEED, Run, arm_of


SETTINGS_FILE = Path(__file__).with_name("settings.yaml")


@dataclass(frozen=True)
class Settings:
    """
    Settings tuned on validation images: AdamW's learning rate and weight decay, optimizer steps at 10% of SLAKE, and
    the value of the arm's `Arm.strength`, `None` for arms without one.
    """

    learning_rate: float
    num_steps: int
    weight_decay: float
    strength: float | None = None


# Levels of each factor. The same ratio is a different strength for each model: see the measurements in README.md here.
LEVELS = {"learning_rate": (5e-4, 1e-3, 2e-3), "num_steps": (100, 200, 400), "weight_decay": (0.01, 0.05, 0.2)}
STRENGTHS = {"alignment_gradient_ratio": (1.0, 3.0, 9.0), "alignment_weight": (0.1, 1.0, 3.0)}
# Four factors with three levels in nine trials: any two levels of two factors meet exactly once (Taguchi's L9).
ORTHOGONAL_ARRAY = (
    (0, 0, 0, 0),
    (0, 1, 1, 1),
    (0, 2, 2, 2),
    (1, 0, 1, 2),
    (1, 1, 2, 0),
    (1, 2, 0, 1),
    (2, 0, 2, 1),
    (2, 1, 0, 2),
    (2, 2, 1, 0),
)
# Arms with nine trials, for the model from scratch. The fixed weight has three, with the primary arm's other settings.
NINE_TRIALS = (PLAIN, PRIMARY)
FIXED_WEIGHT = "former_default"
TUNED_ARMS = (*NINE_TRIALS, FIXED_WEIGHT)
COMMENT = (
    "# The model from scratch: chosen by `run.py --tune` on validation images of SLAKE at 10%, seed "
    f"{TUNING_SEED}, by all questions.\n# The mini: set by hand, not tuned.\n"
)
# The arm whose settings an untuned arm uses, by its kind of strength.
FOLLOWED = {"alignment_gradient_ratio": PRIMARY, "alignment_weight": FIXED_WEIGHT}


def trials(arm: str, primary: Settings) -> list[Settings]:
    """
    The settings tried for one of `TUNED_ARMS`, for the model from scratch; `FIXED_WEIGHT` uses those of `primary`,
    except for its weight.
    """
    if arm == FIXED_WEIGHT:
        return [Settings(**{**asdict(primary), "strength": weight}) for weight in STRENGTHS["alignment_weight"]]
    strength = ARMS[arm].strength
    factors = [*LEVELS.values(), STRENGTHS[strength] if strength else (None, None, None)]
    return [Settings(*(values[level] for values, level in zip(factors, row, strict=True))) for row in ORTHOGONAL_ARRAY]


def choose_settings(tried: Sequence[Settings], scores: Sequence[float]) -> Settings:
    """
    Choose the level of each factor whose trials have the best mean score; on a tie, the level tried first. The
    orthogonal array balances the other factors, so that a level is judged by three trials instead of one.
    """
    if len(tried) != len(scores):
        raise ValueError(f"Expected a score for each of {len(tried)} trials, got {len(scores)}.")
    chosen = {}
    for name in asdict(tried[0]):
        by_level: dict = {}
        for settings, score in zip(tried, scores, strict=True):
            by_level.setdefault(getattr(settings, name), []).append(score)
        chosen[name] = max(by_level, key=lambda level: sum(by_level[level]) / len(by_level[level]))
    return Settings(**chosen)


def parse_settings(values: str, arm: str) -> Settings:
    """
    Parse learning rate, steps, weight decay and, if the arm has one, strength.

    Raises:
        ValueError: If `values` are not these three or four numbers.

    Example:
        >>> parse_settings("1e-3,400,0.2,3", "answer_states")
        Settings(learning_rate=0.001, num_steps=400, weight_decay=0.2, strength=3.0)
    """
    names = ["learning rate", "steps", "weight decay", *(["strength"] if arm_of(arm).strength else [])]
    try:
        learning_rate, num_steps, *others = values.split(",")
        if len(others) != len(names) - 2:
            raise ValueError
        return Settings(float(learning_rate), int(num_steps), *map(float, others))
    except ValueError:
        raise ValueError(f"settings {values!r} of {arm}: expected {', '.join(names)}, separated by commas") from None


def read_settings(path: Path = SETTINGS_FILE) -> dict[str, dict[str, Settings]]:
    """
    Read the settings of each arm, by model. Raises `ValueError` if a value is missing, or an arm whose settings other
    arms use (see `FOLLOWED`).
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    read: dict[str, dict[str, Settings]] = {}
    for model, needed in {"scratch": TUNED_ARMS, "mini": (PLAIN, PRIMARY)}.items():
        missing = [arm for arm in needed if arm not in content.get(model, {})]
        if missing:
            raise ValueError(f"{path} has no settings of {model} for {', '.join(missing)}: run with `--tune`.")
        try:
            read[model] = {arm: Settings(**values) for arm, values in content[model].items()}
        except TypeError as error:
            raise ValueError(f"{path}: {error}.") from error
    return read


def write_settings(path: Path, settings: Mapping[str, Mapping[str, Settings]]) -> Path:
    """Write settings for `read_settings`, with a comment on how they were chosen."""
    content = {
        model: {
            arm: {name: value for name, value in asdict(values).items() if value is not None}
            for arm, values in arms.items()
        }
        for model, arms in settings.items()
    }
    return write_whole(path, COMMENT + yaml.safe_dump(content, sort_keys=False))


def settings_of(run: Run, settings: Mapping[str, Mapping[str, Settings]]) -> Settings:
    """The settings to train `run` with: the arm's own, plain's with the arm's strength, a trial's, or given values."""
    if "," in run.settings:
        return parse_settings(run.settings, run.arm)
    of_model, strength = settings[run.model], arm_of(run.arm).strength
    if run.settings.startswith("trial"):
        return trials(run.arm, of_model[PRIMARY])[int(run.settings.removeprefix("trial"))]
    own = of_model.get(run.arm) or of_model[FOLLOWED[strength] if strength else PLAIN]
    if run.settings == "own":
        return own
    return Settings(**{**asdict(of_model[PLAIN]), "strength": own.strength})
