"""A client that repeats a request as long as the server is only busy, as the server asks it to."""

import os

from openai import APIStatusError, OpenAI

client = OpenAI(max_retries=8)
try:
    made = client.completions.create(
        model=os.environ.get("MODEL", "arxiv-abstracts"),
        prompt="Title:",
        max_tokens=20,
        extra_headers={"Idempotency-Key": os.urandom(16).hex()},  # a repetition is stored once
    )
    print(made.choices[0].text)
except APIStatusError as error:  # a final error, or a server that stayed busy
    print(f"{error.status_code}: {error.message}")
    raise SystemExit(1) from None
