"""Finding, preparing and loading models; one decoder for three families."""
