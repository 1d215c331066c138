"""What a fine-tuning says on the terminal: what it will do, what it would cost, what it gained."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from textmill.finetune.encoding import Encoded
from textmill.finetune.errors import ConfigError
from textmill.finetune.export import FINETUNE_FILE
from textmill.finetune.pipeline import FinetuningRun, measure_again, read_figures
from textmill.finetune.preparation import TokenCounts
from textmill.finetune.training import device_words, make_trainer, peak_bytes, precision

NUM_SHOWN = 3
SHOWN_CHARACTERS = 600
REPRODUCED_WITHIN = 0.002  # of bits per byte: kernels of other processors add in other orders
TEXTS_WITHIN = 0.02  # of a share: greedy texts part where two tokens are nearly as likely
_ADAM_BYTES = 8  # a number that is trained: two means in float32
_MEBIBYTE = 1 << 20


def describe(run: FinetuningRun) -> Iterator[str]:
    """What is learned, and what became of the rest."""
    data, options = run.data, run.config.data
    yield from _side("train", data.train_counts, options.max_tokens)
    yield from _side("validation", data.validation_counts, options.max_tokens)
    yield from data.holdout.sentences()
    if data.is_packed:
        yield (
            "The texts have no prompts: they are packed behind one another, into rows of"
            f" {options.max_tokens} tokens."
        )


def _side(name: str, counts: TokenCounts, max_tokens: int) -> Iterator[str]:
    yield (
        f"{name}: {counts.num_texts:,} texts, {counts.num_tokens:,} tokens,"
        f" {counts.num_learned:,} of them learned; a text has {counts.median_tokens} in the"
        f" middle, {counts.max_tokens} at most."
    )
    if counts.num_cut_texts:
        yield (
            f"{name}: {counts.num_cut_texts:,} texts are longer than {max_tokens} tokens and lose"
            f" their ends, {counts.num_cut_tokens:,} tokens in all; data.max_tokens is the bound."
        )
    if counts.num_unlearnable:
        yield (
            f"{name}: {counts.num_unlearnable:,} texts are left out, as their prompts alone have"
            f" {max_tokens} tokens."
        )


def estimate(run: FinetuningRun) -> Iterator[str]:
    """Three examples as they are learned, and what the training would take.

    Two batches are computed, the second is timed; nothing is changed or kept.
    """
    for number, example in enumerate(run.data.train[:NUM_SHOWN], 1):
        yield f"--- example {number} ({example.place.path}, line {example.place.line})"
        for part in example.parts:
            shown = part.text[:SHOWN_CHARACTERS]
            more = "…" if len(part.text) > SHOWN_CHARACTERS else ""
            yield f"[{'learned' if part.is_learned else 'given'}] {shown!r}{more}"
    yield "---"
    config, data = run.config, run.data
    rate, num_steps, trainable = _trial(run)
    tokens = data.train_counts.num_tokens * config.training.epochs
    if config.training.max_steps is not None:
        tokens *= config.training.max_steps / max(1, num_steps)
        num_steps = config.training.max_steps
    yield (
        f"{trainable:,} numbers would be trained ({config.method}) on {device_words()} in"
        f" {precision(config)}: {num_steps:,} steps, {tokens:,.0f} tokens."
    )
    yield (
        f"At {rate:,.0f} tokens/s, measured on one batch, that takes about"
        f" {duration(tokens / rate)}, evaluation apart, and about"
        f" {(peak_bytes() + _ADAM_BYTES * trainable) / _MEBIBYTE:,.0f} MiB of memory."
    )


def _trial(run: FinetuningRun) -> tuple[float, int, int]:
    """Tokens a second, steps of all epochs, and how many numbers are trained."""
    longest: list[Encoded] = sorted(run.data.train_texts, key=lambda t: -len(t.ids))
    size = run.config.training.batch_size
    middle = longest[len(longest) // 2 :][:size]
    with tempfile.TemporaryDirectory() as folder:  # the Trainer makes one, and nothing in it
        trainer = make_trainer(
            run.config,
            run.base.trainable(run.config),
            run.base.tokenizer(),
            run.data.train_texts,
            run.data.validation_texts[:1],
            Path(folder),
        )
    model: Any = trainer.model
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    seconds = 0.0
    for batch in (longest[:size], middle):  # the longest for its memory, then a usual one
        rows = [{"input_ids": text.ids, "labels": text.labels} for text in batch]
        inputs = trainer._prepare_inputs(trainer.data_collator(rows))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        trainer.training_step(model, inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    batches = -(-len(run.data.train_texts) // size)
    steps = -(-batches // run.config.training.accumulation)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    num_tokens = sum(len(text.ids) for text in middle)
    return num_tokens / seconds, round(steps * run.config.training.epochs), trainable


def comparison(folder: Path) -> Iterator[str]:
    """What was gained, from the folder's own figures."""
    document = read_figures(folder)
    before, after = document["metrics"]["before"], document["metrics"]["after"]
    yield from table(before, after)
    training = document["training"]
    yield (
        f"Trained {training['num_steps']:,} steps in {duration(training['seconds'])} at"
        f" {training['tokens_per_second']:,.0f} tokens/s; most memory"
        f" {training['peak_bytes'] / _MEBIBYTE:,.0f} MiB."
    )
    yield f"The model is in {folder}; serve it with: textmill register {folder}"


def reproduced(run: FinetuningRun, folder: Path) -> Iterator[str]:
    """A finished folder's figures, computed anew.

    Raises:
        ConfigError: they are not those that the folder tells.
    """
    told = read_figures(folder)["metrics"]
    found = {name: metrics.as_json() for name, metrics in measure_again(run, folder).items()}
    yield from table(found["before"], found["after"])
    agreed = dict.fromkeys(words for name in found for words in _agreed(told, found, name, folder))
    yield f"These are the figures that {folder} tells: {', '.join(agreed)}."


def _agreed(
    told: Mapping[str, Any], found: Mapping[str, Any], name: str, folder: Path
) -> Iterator[str]:
    try:
        old, new = told[name], found[name]
        pairs = [("bits per byte", old["bits_per_byte"], new["bits_per_byte"], REPRODUCED_WITHIN)]
        if old["num_examples"] != new["num_examples"]:
            raise ConfigError(
                f"{folder} was measured on {old['num_examples']} examples, and now"
                f" {new['num_examples']} were: other data, or another evaluation.examples."
            )
        if old["texts"] and new["texts"] and old["texts"]["num_texts"] == new["texts"]["num_texts"]:
            pairs += [
                (words, old["texts"]["rouge"][key], new["texts"]["rouge"][key], TEXTS_WITHIN)
                for words, key in (("ROUGE-1", "rouge1"), ("ROUGE-L", "rouge_l"))
            ]
            pairs.append(
                ("memorisation", old["texts"]["memorised"], new["texts"]["memorised"], TEXTS_WITHIN)
            )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder / FINETUNE_FILE} lacks the figure {error}.") from error
    for words, before, after, limit in pairs:
        if not abs(after - before) <= limit:
            raise ConfigError(
                f"{folder} says {before:.4f} {words} {name} training, and {after:.4f} were"
                " measured: other data, another base, other weights, or other options of"
                " evaluation."
            )
        yield words


def table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Two models' figures beside each other."""
    rows = [
        ("bits per byte", before["bits_per_byte"], after["bits_per_byte"], "{:.4f}"),
        ("perplexity", before["perplexity"], after["perplexity"], "{:.2f}"),
    ]
    if before["texts"] and after["texts"]:
        for label, key in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rouge_l")):
            both = before["texts"]["rouge"][key], after["texts"]["rouge"][key]
            rows.append((label, *both, "{:.4f}"))
        for label, key in (("distinct-2", "distinct2"), ("memorised 8-grams", "memorised")):
            rows.append((label, before["texts"][key], after["texts"][key], "{:.4f}"))
    yield f"{'held-out text':20}{'before':>10}{'after':>10}"
    for label, old, new, form in rows:
        yield f"{label:20}{form.format(old):>10}{form.format(new):>10}"


def duration(seconds: float) -> str:
    """A span of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
