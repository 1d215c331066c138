"""Fine-tuning: read data, train, evaluate, and write a folder that a worker can serve.

May import core, tokenizing and engine (with engine.models and engine.sampling); never backend,
worker or cli.
"""
