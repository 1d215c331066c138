"""The web process: HTTP API and pages.

Imports core, tokenizing and Flask; never engine, worker, torch or transformers.
"""
