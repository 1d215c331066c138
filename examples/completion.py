"""One completion, and how many tokens it has."""

import os

from openai import OpenAI

client = OpenAI()
made = client.completions.create(
    model=os.environ.get("MODEL", "arxiv-abstracts"),
    prompt="Title: A Simple Method for Long-Range Attention\n\nAbstract:",
    max_tokens=40,
    temperature=0,
)
print(made.choices[0].text)
print(f"{made.usage.completion_tokens} tokens, finished by {made.choices[0].finish_reason}")
