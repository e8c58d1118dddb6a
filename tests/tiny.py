"""Tiny tokenizers and processors for tests."""

import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from logramed.image_processing_logramed import LoGraMedImageProcessor
from logramed.processing_logramed import LoGraMedProcessor


SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = """
    USER ASSISTANT : . , ? ! ( ) ' " - ### Human Assistant be brief what organ is shown in the image lung liver heart
    brain left right upper lower lobe side of there a an are no yes effusion mass nodule chest abdomen head CT MRI X
    ray and or not normal describe where how many one two three compare with same which modality this that images What
    Is Where Which Describe Yes No Left Right
"""


def tiny_tokenizer(extra_words=()):
    """A tokenizer of whole words and punctuation, with `<s>`, `</s>`, `<pad>`, `<unk>` and `<image>`: 84 tokens."""
    words = dict.fromkeys([*SPECIAL_TOKENS, *WORDS.split(), *extra_words])
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    # Joins words with spaces, and punctuation to the word before it; no word here has the prefix.
    backend.decoder = decoders.WordPiece(prefix="@@", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def tiny_processor(num_image_tokens=4, image_size=8, **kwargs):
    """A processor with `tiny_tokenizer`; a tower with patches of 4 pixels makes 4 image tokens of 8 x 8 pixels."""
    image_processor = LoGraMedImageProcessor(size=image_size)
    return LoGraMedProcessor(image_processor, tiny_tokenizer(), num_image_tokens=num_image_tokens, **kwargs)


def cache_sentence_encoder(name, cache):
    """Put a tiny encoder of letters into a cache of the Hub, as the model of that name."""
    repository, commit = Path(cache) / f"models--{name.replace('/', '--')}", "0" * 40
    folder = repository / "snapshots" / commit
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", *string.printable])}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(vocabulary), initializer_range=0.5, **sizes)).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
