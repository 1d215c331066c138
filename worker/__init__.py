"""The worker side: claims jobs and decodes them.

Imports core, engine and tokenizing; never backend, cli or Flask.
"""
