"""Small copies of the original checkpoints, and what the originals compute from them."""

from tests.trainer.conversion.original_checkpoints import (
    KINDS,
    PATCH_TOKEN_KINDS,
    PLACEHOLDER_KINDS,
    Original,
    write_checkpoint,
    write_clip,
    write_llama,
)
from tests.trainer.conversion.original_models import (
    DENSE_CONNECTORS,
    IMAGE_PLACEHOLDER,
    added_token_id,
    checkpoint_tower,
    original_logits,
)
from tests.trainer.conversion.original_tokenizer import ADDED_TOKENS, BASE_VOCABULARY_SIZE, original_token_ids


__all__ = [
    "ADDED_TOKENS",
    "BASE_VOCABULARY_SIZE",
    "DENSE_CONNECTORS",
    "IMAGE_PLACEHOLDER",
    "KINDS",
    "PATCH_TOKEN_KINDS",
    "PLACEHOLDER_KINDS",
    "Original",
    "added_token_id",
    "checkpoint_tower",
    "original_logits",
    "original_token_ids",
    "write_checkpoint",
    "write_clip",
    "write_llama",
]
