"""Which tokens the parameters of the strategy custom name."""

from __future__ import annotations

import pytest

from textmill.core.strategies import DecodingParameters
from textmill.engine.requests import ParametersUnusable
from textmill.engine.token_rules import rules_for


class Letters:
    """A token for each character, and a pair of stars as one."""

    def encode_part(self, text: str) -> list[int]:
        return [ord(letter) for letter in text.replace("**", "§")]


def custom(**options: object) -> DecodingParameters:
    return DecodingParameters("custom", 1, seed=0, **options)  # type: ignore[arg-type]


def test_without_named_tokens_there_are_no_rules() -> None:
    assert rules_for(custom(dry_sequence_breakers=("x",)), Letters(), 300) is None
    assert rules_for(custom(dry_multiplier=1.0), Letters(), 300) is None


def test_the_last_token_of_each_string_breaks_repetitions() -> None:
    own = custom(dry_multiplier=1.0, dry_sequence_breakers=("\n", "b:", "**", "c\n"))
    rules = rules_for(own, Letters(), 300)
    assert rules is not None
    assert list(rules.breaker_ids) == [ord("\n"), ord(":"), ord("§")]
    assert not rules.bias_ids


def test_biases_are_kept_by_id() -> None:
    rules = rules_for(custom(logit_bias=((3, -100.0), (299, 0.5))), Letters(), 300)
    assert rules is not None
    assert (list(rules.bias_ids), list(rules.biases)) == ([3, 299], [-100.0, 0.5])


@pytest.mark.parametrize("token", [300, 2**40, -1])
def test_a_token_that_the_model_does_not_have_is_named(token: int) -> None:
    with pytest.raises(ParametersUnusable, match=rf"token {token}, but the model has 300 tokens"):
        rules_for(custom(logit_bias=tuple(sorted([(3, 1.0), (token, 1.0)]))), Letters(), 300)
