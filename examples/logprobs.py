"""How likely each token of a text was, and what else could have come."""

import math
import os

from openai import OpenAI

client = OpenAI()
made = client.completions.create(
    model=os.environ.get("MODEL", "arxiv-abstracts"),
    prompt="Title: A Simple Method for Long-Range Attention\n\nAbstract:",
    max_tokens=12,
    temperature=0.7,
    seed=3,
    logprobs=3,
)
found = made.choices[0].logprobs
for token, value, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
    others = ", ".join(f"{text!r} {math.exp(other):.0%}" for text, other in top.items())
    print(f"{token!r:>20} {math.exp(value):6.1%}   of {others}")
