"""The contract that the web side and the worker side share.

Imports pydantic, sqlalchemy, celery and redis; never a sibling package, Flask or torch.
"""
