"""Fine-tuning: data → training → evaluation → a folder that the worker serves.

May import core, engine.models, textmill.engine and engine.sampling; never backend, nor the worker's
process (worker.app, worker.job_worker).
"""
