"""Decoding strategies: from logits to tokens. Imports core.strategies and torch alone."""
