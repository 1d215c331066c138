"""Finds out who sends a request, and whether the request is allowed."""
