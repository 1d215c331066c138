"""The HTTP server: one event loop that carries a WSGI application on a bounded pool of threads.

A request uses a thread only while the application computes. Waiting for a slow client, for a job
or for the next event happens on the loop. h11 parses HTTP/1.1. This package knows nothing of jobs:
of the product it imports ``backend.problem_documents`` alone.
"""
