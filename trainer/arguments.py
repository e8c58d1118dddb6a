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
        "Short form of `model_name_or_path`: any image-text-to-text model, as a folder or Hub id. Without it, "
        "tower, language model and tokenizer are made anew from `vision_config` and `text_config`.",
    )
    vision: str | None = _argument(
        None,
        "In place of `vision_config`: a pretrained tower (CLIP, SigLIP, DINOv2) for a new language model, as a "
        "folder or Hub id.",
    )
    vision_config: dict | str | None = _argument(  # noqa: RUF009
        None, "Configuration of a new vision tower, with its `model_type` (JSON)."
    )
    text_config: dict | str | None = _argument(  # noqa: RUF009
        None, "Configuration of a new language model, with its `model_type` (JSON)."
    )
    logramed_config: dict | str | None = _argument(  # noqa: RUF009
        None,
        "Further values of a new `LoGraMedConfig`, such as `dense_connector` or `image_token_pooling` (JSON).",
    )
    vocab_size: int = _argument(2000, "Largest vocabulary of a new tokenizer, trained on the training text.")
    position_embedding_scale: float = _argument(
        1.0,
        "Factor on the first position embeddings of a new vision tower. The usual ones are far smaller than the "
        "patches', and a tower that starts from nothing learns late where things are.",
    )
    train: str | None = _argument(
        None,
        "Parts to train, by commas: `projector`, `language`, `vision`; the rest is frozen. By default all, with "
        "`use_peft` the projector, and the language model through adapters.",
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
        "In place of `dataset_name`: LLaVA-Med JSON or JSON lines, a folder of VQA-RAD, SLAKE or reports, a "
        "folder written by `datasets`, or a Hub id.",
    )
    first_stage_data: str | None = _argument(
        None,
        "Data of the same forms to train on first, such as descriptions: what the paper's pre-training is for, "
        "in one command. Without the alignment loss.",
    )
    first_stage_epochs: float = _argument(1.0, "Epochs of the first stage.")
    image_folder: str | None = _argument(None, "Folder that holds the images; by default `images` beside the data.")
    extended_data: str | None = _argument(None, "Second file with the extended answers, merged by id.")
    report_section: str | None = _argument(
        None,
        "Of folders of reports (R2Gen's annotation.json, IU X-Ray's tables) the section to write: `findings`, "
        "`impression` or `both`. By default reports are taken as they stand.",
    )
    validation_data: str | None = _argument(
        None,
        "Data of the same form to evaluate on during training; the folder or Hub id of `train_data` again stands "
        "for its split `dataset_test_split`.",
    )
    validation_share: float = _argument(
        0.0,
        "Without `validation_data`: share of the training rows held out for evaluation, 0 to 1.",
    )
    shuffle_turns: bool = _argument(
        False,
        "Put the turns of a conversation in another order each time it is seen. For questions that do not build "
        "on each other: each is then also learned as the first, as an evaluation asks it.",
    )
    max_turns: int | None = _argument(
        None,
        "With `shuffle_turns`: the most turns to keep of a conversation, drawn anew each time it is seen.",
    )
    dry_run: bool = _argument(
        False,
        "Check data, memory and arguments, take two steps, print what was found; start nothing.",
    )
    streaming: bool = _argument(
        False,
        "Read `train_data` as it is needed, from JSON lines, WebDataset shards or a Hub id, never all of it at "
        "once. Needs `max_steps`.",
    )
    on_bad_row: str = _argument(
        "raise",
        "What to do about a row that cannot be used: `raise` stops and names it, `skip` lists it.",
        choices=["raise", "skip"],
    )
    train_ids: str | None = _argument(
        None,
        "File with the ids to train on, written by `data/subsets.py` from `train_data`; other rows are left out.",
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
                raise ValueError(f"A stream (`streaming`) cannot have `{refused[0]}`, which needs all rows at hand.")


@dataclass
class LoGraMedTrainingArguments(AlignmentConfig, SFTConfig):
    """
    [`trl.SFTConfig`] with the settings of [`AlignmentConfig`].

    What differs from `SFTConfig`: 16-bit training and gradient checkpointing are asked for, never on by default, and
    several processes on a machine without an accelerator share the work on its CPUs, without `use_cpu` too.
    """

    bf16: bool = _argument(False, "Train in bfloat16 mixed precision.")
    gradient_checkpointing: bool | None = _argument(
        None, "Former name of `activation_checkpointing`: less memory, more time."
    )
    max_length: int | None = _argument(
        2048,
        "Longest sequence in tokens; longer ones lose their last turns, never an image token.",
    )
    report_to: None | str | list[str] = _argument(  # noqa: RUF009, RUF036 (the parser reads a union in this order)
        "tensorboard",
        "Where the log goes beside the files of the run: `tensorboard` (files in `output_dir/runs`), `trackio` "
        "(on this machine, unless `trackio_space_id` is set), both, or `none`.",
    )
    cache_image_features: str | None = _argument(
        None,
        "Folder to keep in what a frozen vision tower makes of each image, so that it runs once an image. For "
        "several epochs; a CLIP ViT-L/14 with 224 pixels takes about 1 MiB an image in float32.",
    )
    max_validation_questions: int = _argument(
        256,
        "Questions answered at each evaluation for the validation accuracy, drawn with the seed; 0: none.",
    )
    max_new_tokens: int = _argument(32, "Longest answer at validation, in tokens.")
    hub_license: str | None = _argument(
        None,
        "Licence of the model for its card, such as `apache-2.0`; `push_to_hub` needs it.",
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
