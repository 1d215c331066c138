"""The model card: its contents, and that no string in it can inject Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import yaml

from textmill.finetune.card import model_card
from textmill.finetune.card_facts import CardFacts, DataFacts, TrainingFacts
from textmill.finetune.data_files import DataFile
from textmill.finetune.metrics import Metrics, TextMetrics
from textmill.finetune.rouge import Rouge
from textmill.finetune.scoring import Score

NASTY = 'a|b `c` <script>*d*</script> [e](f) _g_ & "h"\n---\n# i\\'


def metrics(loss_nats: float, rouge1: float) -> Metrics:
    texts = TextMetrics(
        num_texts=100,
        num_skipped=0,
        rouge=Rouge(rouge1, 0.05, 0.2),
        distinct1=0.25,
        distinct2=0.5,
        distinct3=0.75,
        memorised=0.021,
        reference_memorised=0.017,
    )
    return Metrics(1000, Score(loss_nats, 2000, 10_000), texts)


FACTS = CardFacts(
    name="arxiv-abstracts",
    description="Writes abstracts after titles.",
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    license="apache-2.0",
    library="peft",
    data=DataFacts(
        files=(
            DataFile("train.jsonl.gz", "training", "ab" * 32, 26_827),
            DataFile("validation.jsonl.gz", "validation", "cd" * 32, 1_000),
        ),
        format="title_abstract",
        num_training=26_000,
        num_validation=990,
        num_duplicates=12,
        num_overlapping=34,
        num_truncated=56,
        num_cut_tokens=7_890,
        max_tokens=512,
    ),
    training=TrainingFacts(
        method="lora",
        options=(("lora.rank", "16"), ("training.learning_rate", "0.001")),
        num_steps=1_500,
        best_step=1_450,
        num_tokens=6_000_000,
        seconds=5_400,
        hardware="2 CPU cores",
    ),
    before=metrics(6_000.0, 0.25),
    after=metrics(5_000.0, 0.3),
    curve="loss.svg",
)


def front_matter(card: str) -> dict[str, Any]:
    opening, matter, _ = card.split("---\n", 2)
    assert not opening
    return dict(yaml.safe_load(matter))


def cells(card: str, first: str) -> list[str]:
    """The other cells of the table row with the first cell ``first``."""
    lines = [line for line in card.splitlines() if line.startswith(f"| {first} |")]
    assert len(lines) == 1, lines
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[0])[2:-1]]


def test_the_front_matter_contains_the_fields_that_the_hub_reads() -> None:
    assert front_matter(model_card(FACTS)) == {
        "library_name": "peft",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["textmill", "fine-tuned", "lora"],
    }


def test_an_unknown_license_is_omitted_and_mentioned() -> None:
    card = model_card(replace(FACTS, license=None))
    assert "license" not in front_matter(card)
    assert "license is unknown" in card


def test_a_full_fine_tuning_is_not_tagged_as_an_adapter() -> None:
    training = replace(FACTS.training, method="full")
    card = model_card(replace(FACTS, library="transformers", training=training))
    assert front_matter(card)["tags"] == ["textmill", "fine-tuned"]
    assert "all its weights" in card


def test_the_sections_are_in_order() -> None:
    headings = re.findall(r"^## (.*)$", model_card(FACTS), re.MULTILINE)
    assert headings == [
        "Intended use and limits",
        "Data",
        "Training",
        "Evaluation",
        "How to use",
        "How to reproduce",
    ]


def test_the_data_are_listed_with_checksums_and_the_numbers_of_dropped_examples() -> None:
    card = model_card(FACTS)
    assert cells(card, "train.jsonl.gz") == ["training", "26,827", f"`{'ab' * 32}`"]
    assert "12 dropped as duplicates" in card
    assert "34 dropped from training because they are also held out" in card
    assert "56 truncated to 512 tokens, 7,890 tokens cut in all" in card


def test_a_hub_dataset_has_no_checksum() -> None:
    data = replace(FACTS.data, files=(DataFile("someone/set", "both", "", 10),))
    assert cells(model_card(replace(FACTS, data=data)), "someone/set")[2] == "kept on the Hub"


def test_the_training_is_described_with_its_options_and_curve() -> None:
    card = model_card(FACTS)
    assert "1,500 steps over 6,000,000 tokens in 90 min on 2 CPU cores." in card
    assert "after step 1,450" in card
    assert cells(card, r"lora.rank") == ["16"]
    assert "![Loss over the steps](loss.svg)" in card
    assert "![" not in model_card(replace(FACTS, curve=None))


def test_the_figures_before_and_after_are_side_by_side_with_the_change() -> None:
    card = model_card(FACTS)
    assert cells(card, "Perplexity (lower is better)") == ["20.09", "12.18", "−7.91"]
    assert cells(card, "Bits per byte (lower is better)") == ["0.8656", "0.7213", "−0.1443"]
    assert cells(card, "ROUGE-1 (higher is better)") == ["25.00", "30.00", "+5.00"]
    assert cells(card, "Distinct-2") == ["50.0\xa0%", "50.0\xa0%", "±0"]
    assert cells(card, "Memorised 8-grams (held-out text itself: 1.70\xa0%)")[0] == "2.10\xa0%"
    assert "share 1.70 % of their 8-grams with the training data" in card


def test_without_completions_only_the_loss_is_shown() -> None:
    card = model_card(replace(FACTS, after=replace(FACTS.after, texts=None)))
    assert "Bits per byte" in card
    assert "ROUGE" not in card


def test_multi_xscience_is_compared_with_published_results() -> None:
    card = model_card(replace(FACTS, is_multi_xscience=True))
    assert cells(card, "Pointer-Generator") == ["34.11", "6.76", "30.63", "Lu et al., 2020"]
    assert cells(card, "arxiv-abstracts") == ["30.00", "5.00", "20.00", "this card"]
    assert "100 examples held out from validation.jsonl.gz" in card
    assert "Pointer-Generator" not in model_card(FACTS)


def test_it_explains_how_to_serve_and_reproduce_the_model() -> None:
    card = model_card(FACTS)
    assert "textmill register FOLDER" in card
    assert "--model arxiv-abstracts" in card
    assert "textmill finetune finetune.toml" in card


def test_no_string_can_inject_markdown_or_html() -> None:
    data = replace(FACTS.data, files=(DataFile(NASTY, "both", NASTY, 1),), format=NASTY)
    training = replace(FACTS.training, options=((NASTY, NASTY),), hardware=NASTY)
    nasty = replace(
        FACTS,
        name=NASTY,
        description=NASTY,
        base_model=NASTY,
        license=NASTY,
        data=data,
        training=training,
        curve=NASTY,
        is_multi_xscience=True,
    )
    card = model_card(nasty)
    assert front_matter(card)["base_model"] == front_matter(card)["license"] == NASTY
    text = card.split("---\n", 2)[2]
    outside_code = re.sub(r"```.*?```|(?<!\\)`[^`]*`", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script", outside_code)
    assert len(re.findall(r"^#+ ", text, re.MULTILINE)) == 7
    tables = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) - 1 for line in tables}
    assert columns == {2, 4, 5}
    assert "\n---\n" not in text
