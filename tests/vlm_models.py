"""Tiny models of other families than ours, for the processors of `tests.vlm_processors`, with random weights."""

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)


IMAGE_TOKEN_ID = 4  # as in `tests.vlm_processors`
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    **SIZES,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def with_random_weights(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # larger than the usual start, so that a difference shows
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def tiny_llava_model(seed=0):
    vision = {"model_type": "clip_vision_model", **SIZES, "image_size": 8, "patch_size": 4, "projection_dim": 32}
    text = {"model_type": "llama", **TEXT}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN_ID)
    return with_random_weights(LlavaForConditionalGeneration(config), seed)


def tiny_qwen2_5_vl_model(seed=0):
    vision = {
        **{"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 32},
        **{"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1]},
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE_TOKEN_ID,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    return with_random_weights(Qwen2_5_VLForConditionalGeneration(config), seed)


def tiny_gemma3_model(seed=0):
    vision = {"model_type": "siglip_vision_model", **SIZES, "image_size": 16, "patch_size": 4}
    text = {"model_type": "gemma3_text", **TEXT, "layer_types": ["full_attention", "sliding_attention"]}
    config = Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN_ID,
        boi_token_index=5,
        eoi_token_index=6,
    )
    return with_random_weights(Gemma3ForConditionalGeneration(config), seed)


def tiny_smolvlm_model(seed=0):
    config = SmolVLMConfig(
        vision_config={**SIZES, "image_size": 16, "patch_size": 4},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_TOKEN_ID,
        scale_factor=2,
        pad_token_id=0,
    )
    return with_random_weights(SmolVLMForConditionalGeneration(config), seed)
