"""Which tokens are learned, and the resulting loss in a case computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Metaspace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny_models import tiny_model
from textmill.finetune.config import read_config
from textmill.finetune.encoding import IGNORED, Encoded, Encoder, pack
from textmill.finetune.errors import ConfigError
from textmill.finetune.examples import Example, Location, Part
from textmill.finetune.training import make_trainer

HERE = Location("here", 1)
WORDS = {"<end>": 0, "one": 1, "two": 2, "three": 3}


def example(prompt: str, completion: str) -> Example:
    return Example((Part(prompt, False), Part(completion, True)), HERE)


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> Path:
    """A tokenizer with one token for each word."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_the_completion_and_the_end_are_learned_and_the_prompt_is_not(word_tokenizer: Path) -> None:
    found = Encoder(word_tokenizer, 0, 16).encode(example("one two", " three"))
    assert found == Encoded([1, 2, 3, 0], [False, False, True, True])
    assert found.labels == [IGNORED, IGNORED, 3, 0]
    assert found.num_learned == 2


def test_plain_text_is_learned_except_its_first_token(
    word_tokenizer: Path,
) -> None:
    text = Example((Part("one two three", True),), HERE)
    found = Encoder(word_tokenizer, 0, 16).encode(text)
    assert found.is_learned == [True] * 4
    assert found.num_learned == 3


def test_a_long_example_is_truncated_and_the_cut_tokens_are_counted(word_tokenizer: Path) -> None:
    found = Encoder(word_tokenizer, 0, 3).encode(example("one two", " three one two"))
    assert (found.ids, found.num_cut) == ([1, 2, 3], 3)
    exactly = Encoder(word_tokenizer, 0, 4).encode(example("one two", " three"))
    assert exactly.num_cut == 0


def test_a_prompt_of_maximum_length_leaves_nothing_to_learn(word_tokenizer: Path) -> None:
    assert Encoder(word_tokenizer, 0, 2).encode(example("one two", " three")).num_learned == 0


def test_every_message_of_the_assistant_is_learned(word_tokenizer: Path) -> None:
    parts = (Part("one", False), Part(" two", True), Part(" three", False), Part(" one", True))
    found = Encoder(word_tokenizer, 0, 16).encode(Example(parts, HERE))
    assert found.ids == [1, 2, 3, 1, 0]
    assert found.is_learned == [False, True, False, True, True]


def test_the_tokens_of_the_prompt_are_those_that_the_server_uses() -> None:
    path = tiny_model("llama") / "tokenizer.json"
    encoder, tokenizer = Encoder(path, 0, 64), Tokenizer.from_file(str(path))
    # "qui" and "ck" may be one token if they are not tokenized separately.
    for prompt, completion in (
        ("The qui", "ck fox"),
        ("Title: x\nAbstract:", " We show"),
        ("é", "é"),
    ):
        found = encoder.encode_parts(example(prompt, completion))
        served = tokenizer.encode(prompt).ids
        assert found[0][: len(served)] == served
        assert found[1] == [False] * len(served) + [True] * (len(found[0]) - len(served))
        assert tokenizer.decode(found[0]) == prompt + completion


def test_a_tokenizer_that_marks_the_start_of_text_marks_only_the_first_part(tmp_path: Path) -> None:
    vocabulary = {"<end>": 0, "▁a": 1, "▁b": 2, "b": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = Metaspace(prepend_scheme="first")
    tokenizer.save(str(tmp_path / "t.json"))
    found = Encoder(tmp_path / "t.json", 0, 8).encode_parts(example("a", " b"))
    assert found == ([1, 2], [False, True])


def test_the_error_about_an_invalid_tokenizer_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"no": "tokenizer"}))
    with pytest.raises(ConfigError, match=r"t\.json cannot be read"):
        Encoder(tmp_path / "t.json", 0, 8)


def test_packing_keeps_every_token_in_order() -> None:
    texts = [
        Encoded([1, 2, 0], [True] * 3),
        Encoded([3, 0], [True] * 2),
        Encoded([1, 1, 1, 0], [True] * 4),
    ]
    blocks = pack(texts, 4)
    assert [block.ids for block in blocks] == [[1, 2, 0, 3], [0, 1, 1, 1], [0]]
    assert [token for block in blocks for token in block.ids] == [1, 2, 0, 3, 0, 1, 1, 1, 0]


def bigram_model() -> LlamaForCausalLM:
    """A model without layers: a table gives the next token's probabilities by the last token.

    P(three | two) is 1/2 and P(end | three) is 1/4; after one, all tokens are equally likely.
    """
    table = torch.tensor(
        [
            [0.25, 0.25, 0.25, 0.25],
            [0.25, 0.25, 0.25, 0.25],
            [0.125, 0.25, 0.125, 0.5],
            [0.25, 0.5, 0.125, 0.125],
        ]
    )
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=0,
        num_attention_heads=1,
        tie_word_embeddings=False,
        rms_norm_eps=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(4))  # the norm scales 1 to 2
        model.lm_head.weight.copy_(table.log().T / 2)
    return model


def trainer_of(model: Any, texts: list[Encoded], folder: Path, tokenizer_path: Path) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_path), pad_token="<end>")
    options = {"training": {"precision": "float32", "batch_size": 2, "accumulation": 1}}
    config = read_config(
        None, {"": {"base": "b", "name": "n"}, "data": {"train": ["t"]}, **options}
    )
    return make_trainer(config, model, tokenizer, texts, texts, folder)


def test_the_loss_of_the_completion_equals_the_value_computed_by_hand(
    word_tokenizer: Path, tmp_path: Path
) -> None:
    encoder = Encoder(word_tokenizer, 0, 16)
    texts = [encoder.encode(example("one two", " three")), encoder.encode(example("one", " two"))]
    trainer = trainer_of(bigram_model(), texts, tmp_path / "c", word_tokenizer)
    batch = trainer.data_collator(
        [{"input_ids": text.ids, "labels": text.labels} for text in texts]
    )
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 3, 0], [IGNORED, 2, 0, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    # -ln P: three after two 1/2, end after three 1/4; two after one 1/4, end after two 1/8.
    by_hand = (math.log(2) + math.log(4) + math.log(4) + math.log(8)) / 4
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    assert loss.item() == pytest.approx(by_hand, abs=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand, abs=1e-5)
