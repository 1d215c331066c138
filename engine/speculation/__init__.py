"""Guesses of a text's next tokens, from the text itself and from a table. Needs no torch."""
