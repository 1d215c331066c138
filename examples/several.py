"""Several prompts at once, with the asynchronous client."""

import asyncio
import os

from openai import AsyncOpenAI

TITLES = ["Graph Neural Networks for Traffic", "A Survey of Sampling", "On the Limits of Attention"]


async def main() -> None:
    async with AsyncOpenAI() as client:
        made = await asyncio.gather(
            *(
                client.completions.create(
                    model=os.environ.get("MODEL", "arxiv-abstracts"),
                    prompt=f"Title: {title}\n\nAbstract:",
                    max_tokens=20,
                    temperature=0,
                )
                for title in TITLES
            )
        )
    for title, one in zip(TITLES, made, strict=True):
        print(f"{title}:{one.choices[0].text}")


asyncio.run(main())
