"""Tests of texts that end an answer."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from logramed.eval.stop_strings import StopStrings
from tests.tiny import tiny_processor


def test_stop_strings_are_found_across_tokens_and_cut():
    processor = tiny_processor()
    stop = StopStrings(processor.tokenizer, ["lung liver"])
    ids = processor.tokenizer("yes in the lung liver")["input_ids"]
    assert [stop(ids[:end]) for end in (1, len(ids) - 1, len(ids))] == [False, False, True]
    assert stop.cut("yes in the lung liver no") == "yes in the "
    assert stop.cut("yes") == "yes"
    byte = Tokenizer(
        models.BPE({letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    byte.pre_tokenizer, byte.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    chinese = StopStrings(PreTrainedTokenizerFast(tokenizer_object=byte), ["\u7ed3\u675f"])  # three tokens a character
    assert chinese(byte.encode("yes\u7ed3\u675f").ids)
    assert not chinese(byte.encode("yes\u7ed3").ids)
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(processor.tokenizer, [""])
