"""The test networks and oracles of tests/ir serve here as well."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ir"))
