"""Measuring: targets, timing, units as the runtime fuses them, the table of their times, and estimates from it."""

from .accuracy import Accuracy, Check, accuracy
from .cost import Estimate, LatencyModel, Part
from .fill import Network, extend, fill
from .lut import Entry, Lut, differences
from .memory import Memory, memory
from .staircase import Granularity, probe
from .target import Target
from .timing import Clocks, Feeds, Latency, measure, measure_against, measure_many, runner
from .trace import Trace, trace
from .units import Attribution, Executed, attribute

__all__ = [
    "Accuracy",
    "Attribution",
    "Check",
    "Clocks",
    "Entry",
    "Estimate",
    "Executed",
    "Feeds",
    "Granularity",
    "Latency",
    "LatencyModel",
    "Lut",
    "Memory",
    "Network",
    "Part",
    "Target",
    "Trace",
    "accuracy",
    "attribute",
    "differences",
    "extend",
    "fill",
    "measure",
    "measure_against",
    "measure_many",
    "memory",
    "probe",
    "runner",
    "trace",
]
