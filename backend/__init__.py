"""The web side: HTTP API and pages.

May import core and Flask; never worker, torch or transformers.
"""
