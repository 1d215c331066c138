"""Decoding strategies: from logits to tokens. Knows nothing of models, caches or requests."""
