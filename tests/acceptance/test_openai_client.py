"""The OpenAI client, unmodified, against a running product."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.acceptance.stack import Stack

PROMPT = "The quick brown"
LLAMA, NEO = "tiny-llama", "tiny-neo"


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def job_text(stack: Stack, **body: Any) -> str:
    made = stack.submit(prompt=PROMPT, **body)
    return str(stack.request("GET", f"{made['links']['self']}?wait=30").json["text"])


# ---- completions --------------------------------------------------------------------------------


def test_a_completion_is_the_text_of_a_job(client: openai.OpenAI, stack: Stack) -> None:
    made = client.completions.create(model=LLAMA, prompt=PROMPT, max_tokens=12, temperature=0)
    (choice,) = made.choices
    assert choice.text == job_text(stack, max_new_tokens=12)
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("length", 0, None)
    assert made.object == "text_completion"
    assert made.usage is not None
    assert made.usage.completion_tokens == 12
    assert made.usage.total_tokens == made.usage.prompt_tokens + 12
    assert made.system_fingerprint
    run_id = made.id.removeprefix("cmpl-")
    run = stack.request("GET", f"/api/v1/runs/{run_id}").json
    assert [job["text"] for job in run["jobs"]] == [choice.text]


def test_a_seed_repeats_and_samples_differ(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        made = client.completions.create(
            model=LLAMA, prompt=PROMPT, max_tokens=8, n=3, seed=seed, temperature=1.5
        )
        assert [choice.index for choice in made.choices] == [0, 1, 2]
        return [choice.text for choice in made.choices]

    first = texts(5)
    assert first == texts(5)
    assert len(set(first)) == 3
    assert texts(6)[:2] == first[1:]


def test_several_prompts_are_one_run_in_order(client: openai.OpenAI, stack: Stack) -> None:
    prompts = [PROMPT, "Another one", "A third"]
    together = client.completions.create(model=LLAMA, prompt=prompts, max_tokens=6, temperature=0)
    alone = [
        client.completions.create(model=LLAMA, prompt=text, max_tokens=6, temperature=0)
        for text in prompts
    ]
    assert [c.text for c in together.choices] == [one.choices[0].text for one in alone]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(
        one.usage.prompt_tokens for one in alone if one.usage
    )


def test_token_ids_are_prompts(client: openai.OpenAI, stack: Stack) -> None:
    ids = stack.request("POST", "/tokenize", {"prompt": PROMPT}).json["tokens"]
    assert stack.request("POST", "/detokenize", {"tokens": ids}).json["prompt"] == PROMPT
    common = {"model": LLAMA, "max_tokens": 6, "temperature": 0}
    by_text = client.completions.create(prompt=PROMPT, **common)  # type: ignore[call-overload]
    by_ids = client.completions.create(prompt=ids, **common)  # type: ignore[call-overload]
    two = client.completions.create(prompt=[ids, ids[:-1]], **common)  # type: ignore[call-overload]
    assert by_ids.choices[0].text == by_text.choices[0].text == two.choices[0].text
    assert by_ids.usage.prompt_tokens == len(ids)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=LLAMA, prompt=[999_999])
    assert caught.value.param == "prompt"


def test_log_probabilities_agree_with_themselves(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model=LLAMA, prompt=PROMPT, max_tokens=10, temperature=1.5, seed=3, logprobs=4, echo=False
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert "".join(logprobs.tokens) == made.choices[0].text
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert 4 <= len(top) <= 5 or len(set(top)) < 5
        # The same bits; of two tokens with the same text, the likelier one is told.
        assert value in top.values() or value < top[token]


def test_a_stream_has_the_same_text_and_its_usage(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=LLAMA, prompt=PROMPT, max_tokens=40, temperature=0)
    chunks = list(
        client.completions.create(
            model=LLAMA,
            prompt=PROMPT,
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_of_several_choices_names_each(client: openai.OpenAI) -> None:
    texts: dict[int, str] = {}
    for chunk in client.completions.create(
        model=LLAMA, prompt=[PROMPT, "Other"], n=2, max_tokens=8, seed=1, echo=True, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    whole = client.completions.create(
        model=LLAMA, prompt=[PROMPT, "Other"], n=2, max_tokens=8, seed=1, echo=True
    )
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert texts[0].startswith(PROMPT)
    assert texts[2].startswith("Other")


def test_what_clients_send_by_habit_is_understood(stack: Stack) -> None:
    body = {
        "model": LLAMA, "prompt": [PROMPT], "max_tokens": 3, "seed": None, "logprobs": None,
        "logit_bias": {}, "best_of": 1, "n": 1, "suffix": None, "user": "u", "stop": None,
        "frequency_penalty": 0, "presence_penalty": 0, "top_k": -1, "min_p": 0.0,
        "repetition_penalty": 1.0, "mirostat": 0, "ban_eos_token": False,
    }  # fmt: skip
    answer = stack.request("POST", "/v1/completions", body)
    assert answer.status == 200, answer.body
    assert answer.headers["Textmill-Ignored"] == "ban_eos_token, mirostat"
    assert answer.headers["x-request-id"] == answer.json["id"].removeprefix("cmpl-")


def test_filters_together_are_the_strategy_custom(client: openai.OpenAI, stack: Stack) -> None:
    made = client.completions.create(
        model=LLAMA,
        prompt=PROMPT,
        max_tokens=8,
        temperature=0.9,
        top_p=0.8,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias={"5": -100, "6": 1},
        seed=4,
        extra_body={"top_k": 40, "min_p": 0.01, "dry_multiplier": 0.8, "xtc_probability": 0.5},
    )
    (job,) = stack.request("GET", f"/api/v1/runs/{made.id.removeprefix('cmpl-')}").json["jobs"]
    assert job["strategy"] == "custom"
    chosen = {
        "top_k": 40,
        "top_p": 0.8,
        "min_p": 0.01,
        "frequency_penalty": 0.5,
        "xtc_threshold": 0.1,
    }
    assert chosen.items() <= job["parameters"].items()
    body = {"prompt": PROMPT, "model": LLAMA, "strategy": "custom", **job["parameters"]}
    assert stack.submit(**body)
    again = stack.submit(**body)
    text = stack.request("GET", f"{again['links']['self']}?wait=30").json["text"]
    assert text == made.choices[0].text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1_000_000}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"n": 65}, "n"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": "x" * 100_000}, "prompt"),
        ({"stop": ["a"] * 9}, "stop"),
    ],
)
def test_a_bad_field_is_named(stack: Stack, body: dict[str, Any], param: str) -> None:
    answer = stack.request("POST", "/v1/completions", {"prompt": PROMPT, "model": LLAMA, **body})
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")
    assert error["param"].split(".")[0] == param


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-5", prompt=PROMPT)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    assert [model.id for model in client.models.list()] == [LLAMA, NEO]
    assert client.models.retrieve(NEO).owned_by == "textmill"


def test_a_client_that_leaves_ends_its_texts(client: openai.OpenAI, stack: Stack) -> None:
    stream = client.completions.create(
        model=LLAMA, prompt=PROMPT, max_tokens=400, temperature=0, stream=True
    )
    run_id = next(iter(stream)).id.removeprefix("cmpl-")
    stream.close()
    until = time.monotonic() + 20
    while True:
        (job,) = stack.request("GET", f"/api/v1/runs/{run_id}").json["jobs"]
        if job["status"] not in ("queued", "running"):
            break
        assert time.monotonic() < until
    assert job["status"] == "canceled"


def test_the_asynchronous_client(stack: Stack) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
            made = await asyncio.gather(
                *(
                    client.completions.create(
                        model=LLAMA, prompt=PROMPT, max_tokens=5, temperature=0
                    )
                    for _ in range(6)
                )
            )
            return [one.choices[0].text for one in made]

    assert len(set(asyncio.run(ask()))) == 1


# ---- chat ---------------------------------------------------------------------------------------

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "The quick"}]},
]
RENDERED = "system: Be brief.\nuser: The quick\nassistant:"


def test_a_conversation_is_rendered_by_the_models_template(
    client: openai.OpenAI, stack: Stack
) -> None:
    made = client.chat.completions.create(
        model=LLAMA, messages=MESSAGES, max_completion_tokens=8, temperature=0
    )
    ids = stack.request("POST", "/tokenize", {"prompt": RENDERED, "add_special_tokens": False})
    plain = client.completions.create(
        model=LLAMA, prompt=ids.json["tokens"], max_tokens=8, temperature=0
    )
    (choice,) = made.choices
    assert (choice.message.role, choice.message.content) == ("assistant", plain.choices[0].text)
    assert made.usage == plain.usage
    chunks = list(
        client.chat.completions.create(
            model=LLAMA, messages=MESSAGES, max_tokens=8, temperature=0, stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == choice.message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model=LLAMA, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2, seed=1
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


def test_a_model_without_a_template_says_what_to_do(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template") as caught:
        client.chat.completions.create(model=NEO, messages=MESSAGES)
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model=LLAMA,
            messages=MESSAGES,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )


# ---- responses ----------------------------------------------------------------------------------


def test_a_response_in_the_background(client: openai.OpenAI, stack: Stack) -> None:
    made = client.responses.create(
        model=LLAMA, input="The quick", max_output_tokens=9, temperature=0, background=True
    )
    assert made.status in ("queued", "in_progress")
    until = time.monotonic() + 30
    while made.status in ("queued", "in_progress"):
        assert time.monotonic() < until
        made = client.responses.retrieve(made.id)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    job = stack.request("GET", f"/api/v1/jobs/{made.id.removeprefix('resp_')}").json
    assert made.output_text == job["text"]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_response_can_be_followed_from_any_event(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=LLAMA, input="The quick", max_output_tokens=30, temperature=0, stream=True
        )
    )
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.incomplete"
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    last: Any = events[-1]
    whole = last.response.output_text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole
    for place in (0, 3, 4, len(events) // 2, len(events) - 3, len(events) - 1):
        rest = list(
            client.responses.retrieve(
                last.response.id, stream=True, starting_after=events[place].sequence_number
            )
        )
        known = "".join(
            e.delta for e in events[: place + 1] if e.type == "response.output_text.delta"
        )
        more = "".join(e.delta for e in rest if e.type == "response.output_text.delta")
        assert known + more == whole
        assert [e.sequence_number for e in rest] == sorted({e.sequence_number for e in rest})
        assert all(e.sequence_number > events[place].sequence_number for e in rest)


def test_a_response_is_canceled(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model=LLAMA, input="The quick", max_output_tokens=400, temperature=0, background=True
    )
    assert client.responses.cancel(made.id).status == "cancelled"
    until = time.monotonic() + 20
    while client.responses.retrieve(made.id).status != "cancelled":
        assert time.monotonic() < until


def test_a_stream_ends_with_done_and_has_no_names(stack: Stack) -> None:
    body = {"prompt": PROMPT, "max_tokens": 3, "stream": True, "model": LLAMA}
    text = stack.request("POST", "/v1/completions", body).body.decode()
    lines = [line for line in text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    assert all(json.loads(line[6:])["object"] == "text_completion" for line in lines[:-1])
