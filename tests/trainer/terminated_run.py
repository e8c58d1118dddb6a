"""A run ended by SIGTERM to one of its processes, and resumed, beside one left alone: a program of `torchrun`."""

import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from logramed.trainer import train


class Terminate(TrainerCallback):
    """Sends SIGTERM to its own process before a step ends that is evaluated, in the second stage."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, eval_dataloader=None, **kwargs):
        if state.global_step + 1 == self.step and args.eval_strategy != "no":
            os.kill(os.getpid(), signal.SIGTERM)


def main(whole_recipe, recipe, step, codes_file):
    """Write the exit codes of the run left alone, of the one that is ended after `step`, and of that one resumed."""
    show = train.show_progress

    def show_and_terminate(trainer):
        show(trainer)
        if trainer.args.process_index == 1:
            trainer.add_callback(Terminate(int(step)))

    with mock.patch.object(Accelerator, "end_training"):  # one group of processes does for all three
        codes = [train.main([whole_recipe])]
        with mock.patch.object(train, "show_progress", show_and_terminate):
            codes.append(train.main([recipe]))
        codes.append(train.main([recipe, "--resume_from_checkpoint", "true"]))
    Path(f"{codes_file}.{os.environ['RANK']}").write_text(json.dumps(codes))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
