"""How LoGra-Med is trained: what `HfArgumentParser` reads from the command line or a recipe."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from trl import ModelConfig, ScriptArguments, SFTConfig

from logramed.eval.volumes import VolumeOptions
from logramed.eval.volumes.options import SLICES_HELP, TOKENS_HELP, WINDOW_HELP
from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.engines.parts import parse_parts


GROUPS = {
    "Model": "model train vision vision_config text_config logramed_config vocab_size position_embedding_scale "
    "model_revision dtype attn_implementation",
    "Data": "train_data dataset_train_split validation_data dataset_test_split validation_share image_folder "
    "extended_data report_section first_stage_data first_stage_epochs train_ids shuffle_turns max_turns max_length "
    "streaming on_bad_row",
    "DICOM and NIfTI volumes": "slices window volume_tokens",
    "Alignment": " ".join(field.name for field in fields(AlignmentConfig)),
    "Training": "output_dir num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "learning_rate lr_scheduler_type warmup_steps weight_decay optim seed bf16 activation_checkpointing "
    "cache_image_features dataloader_num_workers resume_from_checkpoint dry_run",
    "LoRA and quantization": "use_peft lora_r lora_alpha lora_dropout lora_target_modules load_in_4bit load_in_8bit",
    "Evaluation, checkpoints and logs": "eval_strategy eval_steps per_device_eval_batch_size max_validation_questions "
    "max_new_tokens save_strategy save_steps save_total_limit load_best_model_at_end metric_for_best_model "
    "logging_steps report_to",
    "Publishing": "push_to_hub hub_model_id hub_license hub_private_repo hub_revision hub_token",
}


def _argument(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"help": help} | ({"choices": choices} if choices else {}))


@dataclass
class ModelArguments(ModelConfig):
    """[`trl.ModelConfig`] and, for a new model, its shape."""

    model: str | None = _argument(
        None,
        "Short for `model_name_or_path`: any image-text-to-text model, by folder or Hub id. Without it a new model is "
        "made, see `vision`, `vision_config` and `text_config`.",
    )
    vision: str | None = _argument(
        None,
        "Pretrained vision tower (CLIP, SigLIP, DINOv2) of a new model, by folder or Hub id, in place of "
        "`vision_config`.",
    )
    vision_config: dict | str | None = _argument(  # noqa: RUF009
        None, "Configuration of a new vision tower with its `model_type`, as JSON."
    )
    text_config: dict | str | None = _argument(  # noqa: RUF009
        None, "Configuration of a new language model with its `model_type`, as JSON."
    )
    logramed_config: dict | str | None = _argument(  # noqa: RUF009
        None,
        "Other values of a new model's `LoGraMedConfig`, such as `dense_connector` or `image_token_pooling`, as JSON.",
    )
    vocab_size: int = _argument(2000, "Vocabulary size of a new model's tokenizer, trained on `train_data`.")
    position_embedding_scale: float = _argument(
        1.0,
        "Factor on the initial position embeddings of a new vision tower. With the usual ones, which are small beside "
        "the patches' features, a tower trained from scratch learns late where things are.",
    )
    train: str | None = _argument(
        None,
        "Parts to train, separated by commas: `projector`, `language`, `vision`; the others are frozen. By default "
        "all; with `use_peft` the projector, and adapters in the language model.",
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("vision_config", "text_config", "logramed_config"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, json.loads(getattr(self, name)))
        if self.model is not None and self.model_name_or_path not in (None, self.model):
            raise ValueError("`model` is short for `model_name_or_path`: give one of them.")
        self.model = self.model_name_or_path = self.model or self.model_name_or_path
        new_parts = [name for name in ("vision", "vision_config", "text_config") if getattr(self, name) is not None]
        if self.model is not None and new_parts:
            raise ValueError(f"`model` names a model that exists, and {' and '.join(new_parts)} a new one: give one.")
        if new_parts[:2] == ["vision", "vision_config"]:
            raise ValueError("`vision` names a tower that exists, and `vision_config` a new one: give one.")
        if self.model is None and ("text_config" not in new_parts or len(new_parts) < 2):
            raise ValueError(
                "Give `model`, or both `vision_config` and `text_config` for a new model. In place of "
                "`vision_config`, `vision` names a pretrained tower."
            )
        parse_parts(self.train, self.use_peft)  # refuses what it cannot be
        for name in ("load_in_4bit", "load_in_8bit"):
            if getattr(self, name) and (not self.use_peft or self.model is None):
                raise ValueError(
                    f"`{name}` needs `use_peft`, since quantized weights cannot be trained, and a `model`."
                )


@dataclass
class DataArguments(ScriptArguments):
    """[`trl.ScriptArguments`], and data in files of other forms."""

    train_data: str | None = _argument(
        None,
        "Training data: JSON or JSON lines, VQA-RAD's or SLAKE's own folder, a folder of reports or one written by "
        '`datasets`, or a Hub id (trainer/README.md, "Data").',
    )
    first_stage_data: str | None = _argument(
        None,
        "Data to train on first, without alignment, such as image descriptions: the paper's pre-training within the "
        "same command.",
    )
    first_stage_epochs: float = _argument(1.0, "Epochs of the first stage.")
    image_folder: str | None = _argument(
        None, "Folder of the images; by default `images` beside the data, or the data's own folder."
    )
    extended_data: str | None = _argument(
        None, "File with the extended answers, if they are not in `train_data`, merged by id."
    )
    report_section: str | None = _argument(
        None,
        "Section that the model learns to write from a folder of reports (R2Gen's annotation.json, IU X-Ray's "
        "tables): `findings`, `impression` or `both`. By default the whole report.",
    )
    validation_data: str | None = _argument(
        None,
        "Data to evaluate on during training. The folder or Hub id of `train_data` again means its split "
        "`dataset_test_split`.",
    )
    validation_share: float = _argument(
        0.0,
        "Share of the training rows held out for evaluation, from 0 to below 1, if there is no `validation_data`.",
    )
    shuffle_turns: bool = _argument(
        False,
        "Shuffle the turns of a conversation each time it is seen, for questions that do not build on each other: "
        "an evaluation asks each as the first.",
    )
    max_turns: int | None = _argument(
        None,
        "Most turns of a conversation to train on, drawn anew each time it is seen; needs `shuffle_turns`.",
    )
    dry_run: bool = _argument(
        False,
        "Only check data and arguments, take two steps on the longest rows, and print time and memory.",
    )
    streaming: bool = _argument(
        False,
        "Read `train_data` (JSON lines, WebDataset shards or a Hub id) while training instead of all at once. Needs "
        "`max_steps`.",
    )
    on_bad_row: str = _argument(
        "raise",
        "What to do about a bad row: `raise` stops and names it, `skip` leaves it out and lists it in "
        "skipped_rows.jsonl.",
        choices=["raise", "skip"],
    )
    train_ids: str | None = _argument(
        None,
        "File of the ids to train on, as `logramed-subsets` writes it; other rows are left out.",
    )

    window: str = _argument("auto", WINDOW_HELP)
    slices: str = _argument("uniform", SLICES_HELP)
    volume_tokens: int = _argument(256, TOKENS_HELP)

    def __post_init__(self):
        self.volumes = VolumeOptions(self.slices, self.window, self.volume_tokens)
        if (self.train_data is None) == (self.dataset_name is None):
            raise ValueError("Give `train_data` or `dataset_name`, one of them.")
        if self.dataset_config is not None:
            raise ValueError("`dataset_config` is not read: save that configuration as a folder and name it.")
        self.train_data = self.train_data or self.dataset_name
        self.streaming = self.streaming or self.dataset_streaming
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"`validation_share` is a share from 0 to below 1; got {self.validation_share}.")
        if self.validation_data is not None and self.validation_share:
            raise ValueError("`validation_data` is given, so `validation_share` must be 0.")
        if self.max_turns is not None and not (self.shuffle_turns and self.max_turns >= 1):
            raise ValueError(
                f"`max_turns`, 1 at least, draws turns anew, which needs `shuffle_turns`; got {self.max_turns}."
            )
        if self.streaming:
            wanted = ("extended_data", "first_stage_data", "train_ids", "validation_share", "shuffle_turns")
            refused = [name for name in wanted if getattr(self, name)]
            if refused:
                raise ValueError(f"A stream (`streaming`) cannot have `{refused[0]}`, which needs all rows at once.")


@dataclass
class LoGraMedTrainingArguments(AlignmentConfig, SFTConfig):
    """
    [`trl.SFTConfig`] with the settings of [`AlignmentConfig`].

    Differences from `SFTConfig`: 16-bit training and gradient checkpointing are off by default, and several processes
    on a machine without an accelerator share the work on its CPUs even without `use_cpu`.
    """

    bf16: bool = _argument(False, "Train in bfloat16 mixed precision.")
    gradient_checkpointing: bool | None = _argument(
        None, "Former name of `activation_checkpointing`: less memory, more time."
    )
    max_length: int | None = _argument(
        2048,
        "Longest sequence in tokens. Longer ones are cut at the end, also within an answer, but never before the end "
        "of the last image.",
    )
    report_to: None | str | list[str] = _argument(  # noqa: RUF009, RUF036 (the parser reads a union in this order)
        "tensorboard",
        "Where the log goes: `tensorboard` (files in `output_dir/runs`), `trackio` (on this machine, unless "
        "`trackio_space_id` is set), both, or `none`.",
    )
    cache_image_features: str | None = _argument(
        None,
        "Folder in which the features of a frozen vision tower are kept, so that it runs once per image. A CLIP "
        "ViT-L/14 at 224 pixels takes about 1 MiB per image in float32.",
    )
    max_validation_questions: int = _argument(
        256,
        "Validation questions answered at each evaluation for `closed_accuracy` and `open_recall`, drawn with the "
        "seed; 0 for none.",
    )
    max_new_tokens: int = _argument(32, "Longest answer to a validation question, in tokens.")
    resume_from_checkpoint: str | None = _argument(
        None, "Checkpoint to go on from, or `true` for the last one in `output_dir`, if there is one."
    )
    push_to_hub: bool = _argument(False, "Publish the model with its card once, at the end. Needs `hub_license`.")
    hub_private_repo: bool | None = _argument(None, "Publish to a private repository (the default), or a public one.")
    hub_license: str | None = _argument(
        None, "Licence in the model's card, such as `apache-2.0`; needed by `push_to_hub`."
    )

    def __post_init__(self):
        AlignmentConfig.__post_init__(self)
        # Without it, accelerate has each process train everything by itself.
        shares_work = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.use_cpu = self.use_cpu or (shares_work and not torch.accelerator.is_available())
        SFTConfig.__post_init__(self)
        if self.push_to_hub:
            self._check_publishing()
        # Pinned memory only helps copies to an accelerator; without one it gives a warning for every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        if self.max_validation_questions < 0:
            raise ValueError(f"`max_validation_questions` must not be negative; got {self.max_validation_questions}.")

    def _check_publishing(self):
        if self.hub_license is None:
            raise ValueError(
                "`push_to_hub` needs `hub_license`, under whose terms the model is published, such as apache-2.0. "
                "Those of its base models and data bind it."
            )
        if self.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise ValueError(
                f"`hub_strategy` {self.hub_strategy.value!r} would publish optimizer states: a model is published "
                "once, at the end (`end`)."
            )
        if self.hub_private_repo is None:
            self.hub_private_repo = True
