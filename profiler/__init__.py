"""Measuring: targets, timing, units as the runtime fuses them, the table of their times, and estimates from it."""

from .accuracy import Accuracy, Check, accuracy
from .capability import Capability
from .cost import Estimate, LatencyModel, Part
from .fill import Network, appraise, extend, fill, reference_of
from .lut import Entry, Lut, differences
from .memory import Liveness, Memory, memory
from .pace import PATIENCE_SECONDS, SLOW
from .staircase import Granularity, probe
from .target import Target
from .timing import (
    LOWER_HALF,
    MEDIAN,
    Clocks,
    Comparison,
    Feeds,
    Latency,
    Reference,
    Share,
    measure,
    measure_against,
    measure_many,
    measure_reference,
    runner,
)
from .trace import Trace, trace
from .units import Attribution, Executed, attribute

__all__ = [
    "LOWER_HALF",
    "MEDIAN",
    "PATIENCE_SECONDS",
    "SLOW",
    "Accuracy",
    "Attribution",
    "Capability",
    "Check",
    "Clocks",
    "Comparison",
    "Entry",
    "Estimate",
    "Executed",
    "Feeds",
    "Granularity",
    "Latency",
    "LatencyModel",
    "Liveness",
    "Lut",
    "Memory",
    "Network",
    "Part",
    "Reference",
    "Share",
    "Target",
    "Trace",
    "accuracy",
    "appraise",
    "attribute",
    "differences",
    "extend",
    "fill",
    "measure",
    "measure_against",
    "measure_many",
    "measure_reference",
    "memory",
    "probe",
    "reference_of",
    "runner",
    "trace",
]
