"""A response in the background: it goes on without this program, and is found again by its id."""

import os
import time

from openai import OpenAI

client = OpenAI()
made = client.responses.create(
    model=os.environ.get("MODEL", "arxiv-abstracts"),
    input="Title: A Simple Method for Long-Range Attention\n\nAbstract:",
    max_output_tokens=40,
    temperature=0,
    background=True,
)
print(f"ordered: {made.id}")
while made.status in ("queued", "in_progress"):
    time.sleep(0.2)
    made = client.responses.retrieve(made.id)
print(f"{made.status}: {made.output_text}")
