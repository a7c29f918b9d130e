"""Agents that learn from data alone."""
