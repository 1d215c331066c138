"""Models: the models file, what workers report about loaded models, fine-tuning records."""
