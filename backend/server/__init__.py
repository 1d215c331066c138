"""The HTTP server: one event loop that carries a WSGI application on a bounded pool of threads.

A request takes a thread only while the application computes; what waits (for a slow client, for a
job, for the next event) waits on the loop. The bytes of HTTP/1.1 are h11's. This package knows
nothing of jobs: it imports ``backend.problem_documents`` and no other module of the product.
"""
