"""Open event streams and waits: which subscriber follows which job, and what it gets."""
