"""Fine-tuning: data → training → evaluation → a folder that the worker serves.

May import core, worker.models, worker.engine and worker.decoding; never backend, nor the worker's
process (worker.app, worker.tasks).
"""
