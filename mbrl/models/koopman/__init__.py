"""Koopman models: lifted coordinates in which the dynamics are linear, or nearly so."""
