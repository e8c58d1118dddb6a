"""
Uses of other libraries' private names and undocumented modules, which may change without notice. Nothing imports this;
tests/trainer/engines/test_upstream.py reports which of them a new version has moved.
"""

CHECKPOINTS, TRAINER = "trainer/checkpoints/saving.py", "trainer/trainer.py"
MODEL, PROCESSOR = "modeling_logramed/modeling_logramed.py", "modeling_logramed/processing_logramed.py"
WRAPPER = "trainer/alignment/aligned_model.py"
HANDLER, REQUESTS = "transformers.cli.serving.chat_completion.ChatCompletionHandler", "hub_cards/chat_requests.py"
ANSWER = "request_id model processor model_id inputs gen_config"

# Methods and functions: the file that overrides or calls them, their parameters, and the purpose.
METHODS = {
    "transformers.Trainer._save_checkpoint": (CHECKPOINTS, "model trial", "a checkpoint is whole or not there"),
    "transformers.Trainer._get_output_dir": (CHECKPOINTS, "trial", "it is first written to a separate folder"),
    "transformers.Trainer._load_from_checkpoint": (TRAINER, "resume_from_checkpoint model", "the wrapper's parts"),
    "transformers.Trainer._load_best_model": (TRAINER, "", "the wrapper's parts"),
    "transformers.Trainer._get_grad_norm": (TRAINER, "model grad_norm", "a non-finite gradient ends the run"),
    "transformers.Trainer._prepare_inputs": (TRAINER, "inputs", "micro-batches of one graph go to the device"),
    "transformers.Trainer.save_model": (TRAINER, "output_dir _internal_call", "what is saved, without pushing"),
    "transformers.PreTrainedModel._init_weights": ("trainer/build_model.py", "module", "weights of a new model"),
    "transformers.GenerationMixin._expand_inputs_for_generation": (
        *(MODEL, "expand_size is_encoder_decoder input_ids model_kwargs", "beams keep the images of a prompt"),
    ),
    f"{HANDLER}._streaming": (REQUESTS, f"{ANSWER} gen_manager tools", "answers end before a stop"),
    f"{HANDLER}._non_streaming": (REQUESTS, f"{ANSWER} gen_manager tools", "answers end before a stop"),
    "transformers.PreTrainedTokenizerBase._set_processor_class": (PROCESSOR, "processor_class", "saved tokenizers"),
    "transformers.LlavaProcessor._get_num_multimodal_tokens": (PROCESSOR, "image_sizes kwargs", "servers call it"),
    "transformers.conversion_mapping.get_model_conversion_mapping": (
        *(MODEL, "model key_mapping hf_quantizer add_legacy", "weights are saved under LLaVA's names"),
    ),
    "trl.trainer.utils.add_fused_lm_head": (
        *(WRAPPER, "model temperature cast_lm_head_to_fp32 outputs", "loss without all logits"),
    ),
}

# Attributes: the module that sets or reads them, the file that uses them, and the purpose.
ATTRIBUTES = {
    "_tr_loss": ("transformers.trainer", CHECKPOINTS, "sums of the log, which resuming forgets"),
    "_total_loss_scalar": ("transformers.trainer", CHECKPOINTS, "sums of the log"),
    "_globalstep_last_logged": ("transformers.trainer", CHECKPOINTS, "sums of the log"),
    "_initial_global_step": ("transformers.trainer", CHECKPOINTS, "sums of the log"),
    "_metrics": ("trl.trainer.sft_trainer", CHECKPOINTS, "sums of the log"),
    "_total_train_tokens": ("trl.trainer.sft_trainer", CHECKPOINTS, "sums of the log"),
    "_tokenizer": ("trl.trainer.sft_trainer", TRAINER, "texts in an error"),
    "_tag_names": ("trl.trainer.sft_trainer", TRAINER, "tags of the card"),
    "_no_split_modules": ("accelerate.utils.dataclasses", "trainer/engines/devices.py", "units of FSDP2"),
    "_attn_implementation": ("transformers.modeling_utils", TRAINER, "flash attention packs texts in one row"),
    "_name_or_path": ("transformers.configuration_utils", TRAINER, "the default of `output_dir`"),
    "_weight_conversions": ("transformers.core_model_loading", MODEL, "weights are saved under LLaVA's names"),
    "_auto_class": ("transformers.image_processing_base", "modeling_logramed/image_processing_logramed.py", "loading"),
    "_checkpoint_conversion_mapping": (None, MODEL, "read only by transformers 4.57"),
}
