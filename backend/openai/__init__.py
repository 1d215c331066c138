"""OpenAI's API, for the clients that speak it: the same jobs in other words.

Every completion is a stored job of its owner, which the history shows and which can be canceled and
repeated. Source: OpenAI's API reference, and the requirements of clients in their own sources.
"""
