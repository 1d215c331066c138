"""The words that the web side and the worker side share.

May import pydantic, sqlalchemy, celery and redis; never a sibling package, Flask or torch.
"""
