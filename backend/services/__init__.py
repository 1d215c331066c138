"""What the API and the pages share: submission, jobs, runs, models and the queue.

Imports core and tokenizing. Knows nothing of Flask's requests and responses.
"""
