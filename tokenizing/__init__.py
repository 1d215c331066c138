"""Tokenizers for untrusted text: safe to load, bounded in time and memory. Needs no PyTorch."""
