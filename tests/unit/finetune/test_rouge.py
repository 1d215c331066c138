"""ROUGE, distinct-n and memorisation, against values computed by hand."""

from __future__ import annotations

import pytest

from textmill.finetune.rouge import Rouge, distinct, memorised_shares, rouge, words


def test_words_are_lower_case_without_punctuation_in_any_script() -> None:
    assert words("The CAT's  naïve café, 42 Größe!\n你好") == [
        "the",
        "cat",
        "s",
        "naïve",
        "café",
        "42",
        "größe",
        "你好",
    ]


def test_rouge_is_the_harmonic_mean_of_precision_and_recall() -> None:
    # Words: precision 3/3, recall 3/6. Pairs: 1/2 and 1/5. The longest common subsequence has 3
    # words.
    found = rouge(["the cat mat"], ["the cat sat on the mat"])
    assert found.rouge1 == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert found.rouge2 == pytest.approx(2 * 0.5 * 0.2 / 0.7)
    assert found.rouge_l == pytest.approx(2 * 1 * 0.5 / 1.5)


def test_rouge_l_depends_on_the_order_of_words_and_rouge_1_does_not() -> None:
    found = rouge(["c b a"], ["a b c"])
    assert found.rouge1 == pytest.approx(1)
    assert found.rouge2 == 0
    assert found.rouge_l == pytest.approx(1 / 3)


def test_rouge_stems_words_and_averages_over_pairs() -> None:
    assert rouge(["trained models"], ["training model"]) == Rouge(1, 1, 1)
    found = rouge(["trained models", "something else"], ["training model", "no match"])
    assert found == Rouge(0.5, 0.5, 0.5)


def test_the_rouge_of_an_empty_text_is_zero() -> None:
    assert rouge([""], ["a b c"]) == Rouge(0, 0, 0)


def test_rouge_refuses_an_empty_list_and_a_text_without_reference() -> None:
    with pytest.raises(ValueError, match="no texts"):
        rouge([], [])
    with pytest.raises(ValueError, match="zip"):
        rouge(["a", "b"], ["a"])


def test_distinct_counts_n_grams_over_all_texts_but_not_across_texts() -> None:
    texts = ["a b a b", "A b."]
    assert distinct(texts, 1) == pytest.approx(2 / 6)
    assert distinct(texts, 2) == pytest.approx(2 / 4)  # ab ba ab | ab
    assert distinct(texts, 3) == pytest.approx(2 / 2)  # aba bab
    assert distinct(texts, 5) == 0


def test_memorisation_is_the_share_of_occurrences_that_are_in_the_training_texts() -> None:
    training = ["one two three four", "five six"]
    written = ["One, two three! five six seven", "one two three"]
    # 3-grams: 123 (there), 235, 356, 567 | 123 (there)
    assert memorised_shares([written], training, length=3) == [pytest.approx(2 / 5)]


def test_eight_words_are_needed_and_n_grams_do_not_span_training_texts() -> None:
    sentence = "we propose a new model that learns quickly"
    assert memorised_shares([[sentence]], [f"Here {sentence} from data."]) == [1.0]
    assert memorised_shares([[sentence]], ["we propose a new model", "that learns quickly"]) == [
        0.0
    ]
    assert memorised_shares([["we propose a new model that learns"]], [sentence]) == [0.0]


def test_the_training_texts_are_iterated_once_for_all_groups() -> None:
    training = iter(["a b c d", "e f g h"])
    shares = memorised_shares([["a b c"], ["x y z", "e f g"], []], training, length=3)
    assert shares == [1.0, 0.5, 0.0]
