"""A text while it is written."""

import os

from openai import OpenAI

client = OpenAI()
chunks = client.completions.create(
    model=os.environ.get("MODEL", "arxiv-abstracts"),
    prompt="Title: A Simple Method for Long-Range Attention\n\nAbstract:",
    max_tokens=40,
    temperature=0.5,
    top_p=0.9,
    seed=7,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in chunks:
    for choice in chunk.choices:
        print(choice.text, end="", flush=True)
    if chunk.usage:
        print(f"\n{chunk.usage.total_tokens} tokens with the prompt")
