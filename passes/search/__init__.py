"""Searches: each is one module with `search(graph, groups, cost, score, budget, *, rng, journal) -> SearchResult`."""

from importlib import import_module

from ...ir.errors import InputError
from .common import Choice, Cost, Search, SearchResult, Step, frontier

SEARCHES = ("multiplier", "netadapt", "mcd", "chamnet")
"""Names for `--search`; each names its module in this folder."""

__all__ = ["SEARCHES", "Choice", "Cost", "Search", "SearchResult", "Step", "frontier", "load_search"]


def load_search(name: str) -> Search:
    """The search function of a name; InputError when there is none."""
    if name not in SEARCHES:
        raise InputError(f"there is no search '{name}'; choose one of {', '.join(SEARCHES)}")
    found: Search = import_module(f".{name}", __package__).search
    return found
