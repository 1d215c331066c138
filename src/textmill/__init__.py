"""Serve a fine-tuned small language model: jobs over HTTP, texts that are kept, a page to write on.

In the repository, the packages are links to the folders at its top (docs/decisions/0018).
"""
