"""Builders of test networks, and the embedded default model with its data."""
