"""Tiny models for tests: any of three towers with any of three language models, under 40,000 parameters."""

import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig

from logramed import LoGraMedConfig, LoGraMedForConditionalGeneration


VISION_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
TEXT_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWERS = {
    "clip": lambda **sizes: CLIPVisionConfig(**{**VISION_SIZES, **sizes}),
    "siglip": lambda **sizes: SiglipVisionConfig(**{**VISION_SIZES, **sizes}),
    "dinov2": lambda **sizes: Dinov2Config(mlp_ratio=1, **{**VISION_SIZES, **sizes}),
}
LANGUAGE_MODELS = {
    "llama": lambda **sizes: LlamaConfig(**{**TEXT_SIZES, **sizes}),
    "mistral": lambda **sizes: MistralConfig(**{**TEXT_SIZES, **sizes}),
    "qwen2": lambda **sizes: Qwen2Config(**{**TEXT_SIZES, **sizes}),
}
IMAGE_TOKEN_ID = 4  # as in `tiny_tokenizer`


def tiny_config(tower="clip", language_model="llama", vision_sizes=None, text_sizes=None, **values):
    values = {"image_token_index": IMAGE_TOKEN_ID, **values}
    vision_config = TOWERS[tower](**(vision_sizes or {}))
    return LoGraMedConfig(vision_config, LANGUAGE_MODELS[language_model](**(text_sizes or {})), **values)


def tiny_model(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = LoGraMedForConditionalGeneration(tiny_config(*args, **kwargs)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # larger than the usual start, so that a difference shows in the logits
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def tiny_inputs(model, num_images=1, seed=0):
    """Token ids of one row, all its images first and then five words, its mask, and pixels."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    images = [config.image_token_id] * config.num_image_tokens * num_images
    input_ids = torch.tensor([[1, *images, *torch.randint(5, 99, (5,), generator=generator).tolist()]])
    size = config.vision_config.image_size
    pixel_values = torch.randn(num_images, 3, size, size, generator=generator)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixel_values}
