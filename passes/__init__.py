"""Passes over the graph: coupling, pruning, recovery, fine-tuning, equivalence and search."""
