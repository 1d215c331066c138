"""The worker side: claims jobs and decodes them.

May import core, torch and transformers; never backend or Flask.
"""
