"""
A tiny transformers model that is not ours, images and questions, all synthetic.

Imports of torch stand inside functions: the tests of the metrics, below this folder, run without it.
"""

import json
from pathlib import Path

import pytest


WORDS = ["is", "there", "a", "mass", "in", "the", "left", "right", "lung", "liver", "where", "more", "yes", "no"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def build_tiny_llava(folder: Path) -> Path:
    """transformers' own LLaVA with random weights, 8-pixel images of four tokens each."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "user", "assistant"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_pad=False
        ),
        tokenizer=fast,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        ),
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=len(fast),
            pad_token_id=3,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=4,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        # Weights as small as a new model's give every question one answer.
        parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_tiny_vqa_rad(folder: Path, num_questions: int = 24) -> Path:
    """Questions in the official layout of VQA-RAD, with its traps, about generated noise."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    names = [f"synpic{number}.jpg" for number in range(5)]
    for name in names:
        Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(folder / "images" / name)
    records = []
    for number in range(num_questions):
        question = "Is there a mass in the lung" if number % 2 else "where is the liver "
        records.append(
            {
                "qid": 100 - number,
                "image_name": names[number % 5],
                "image_organ": ("CHEST", "ABD", "HEAD")[number % 3],
                "question": question + " more" * (number % 4),
                "answer": ("left lung", "Yes", 2, "no")[number % 4],
                "answer_type": ("OPEN", "CLOSED ")[number % 2],
                "question_type": ("PRES", "PRSE", "ATRIB", "Other", "POS, PRES")[number % 5],
                "phrase_type": "freeform",
            }
        )
    (folder / "testset.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_vqa_rad(tmp_path_factory) -> Path:
    return write_tiny_vqa_rad(tmp_path_factory.mktemp("vqa_rad") / "data")
