"""Open event streams and waits: who watches which job, and what each still has to receive."""
