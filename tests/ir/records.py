"""All test records: one for every rule and every version of its operator's definition (a test checks that)."""

import records_elementwise
import records_layout
import records_quant
import records_rare
import records_weights
from record import Record

RECORDS: list[Record] = [
    *records_elementwise.RECORDS,
    *records_layout.RECORDS,
    *records_quant.RECORDS,
    *records_rare.RECORDS,
    *records_weights.RECORDS,
]
