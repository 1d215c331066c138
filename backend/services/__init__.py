"""What the API and the pages both do: validate, store, publish, read."""
