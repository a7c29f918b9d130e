"""Searching the settings of a recipe: many runs on Ray Tune, each an ordinary one, most of them stopped early."""
