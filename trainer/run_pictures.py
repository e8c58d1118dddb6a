"""Pictures of the matching, drawn while a run goes on, always of the same samples."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from logramed.trainer.collator import LoGraMedDataCollator
from logramed.trainer.data.turns import count_turns
from logramed.trainer.matching_picture import draw_matching, match_nodes
from logramed.trainer.node_inputs import number_volumes
from logramed.trainer.trainer import LoGraMedTrainer


MOST_NODES = 12


class MatchingPictures(TrainerCallback):
    """
    Draws which image went to which answer every so many steps, to `output_dir/matchings` and to TensorBoard.

    The samples are drawn with the run's seed from the validation data, or without such from the training data; nodes
    are samples or turns, as in training (turns where it has spans), at most twelve. Training is not changed by it.

    Args:
        trainer (`LoGraMedTrainer`): Whose model is looked at.
        num_steps (`int`): From picture to picture.
    """

    def __init__(self, trainer: LoGraMedTrainer, num_steps: int):
        self.trainer, self.num_steps = trainer, num_steps
        args = trainer.args
        samples = args.alignment_granularity == "sample"
        texts = args.texts_without_extended if samples else args.alignment_texts
        self.collator = LoGraMedDataCollator(
            trainer.processing_class,
            max_length=args.max_length,
            # All extended answers of a sample would fill the picture.
            config=args.alignment_config(alignment_granularity="sample" if samples else "turn", alignment_texts=texts),
            text_encoder=trainer.text_encoder,
        )
        self.rows = self._draw_rows()

    def _draw_rows(self) -> list[dict]:
        rows = self.trainer.eval_dataset if self.trainer.eval_dataset is not None else self.trainer.train_dataset
        rows = rows.with_format(None)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.trainer.args.seed)).tolist()
        drawn, num_nodes = [], 0
        for number in order:
            row = rows[number]
            if not row["images"]:
                continue
            by_image = self.collator.config.alignment_granularity == "sample"
            num_nodes += len({*number_volumes(row["messages"])}) if by_image else count_turns(row)
            if drawn and num_nodes > MOST_NODES:
                break
            drawn.append(row)
        return drawn

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.num_steps == 0 and state.is_world_process_zero:
            self.draw(state.global_step)

    def draw(self, step: int) -> Path:
        """Draw the matching as it is after `step` steps; the picture's path."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        was_training = model.training
        with torch.random.fork_rng():
            nodes = match_nodes(model.eval().model, self.collator, self.rows, head=model.head)
        model.train(was_training)
        path = Path(self.trainer.args.output_dir) / "matchings" / f"step_{step:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        accuracy = nodes.is_right.float().mean().item()
        draw_matching(nodes, path, title=f"Step {step}: {100 * accuracy:.0f}% of images matched to their own answer")
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                pixels = np.asarray(Image.open(path).convert("RGB"))
                callback.tb_writer.add_image("matching", pixels, step, dataformats="HWC")
        return path
