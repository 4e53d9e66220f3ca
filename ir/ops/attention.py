"""Attention as one operator."""

from __future__ import annotations

from . import OpRule

RULES: dict[str, OpRule] = {}
