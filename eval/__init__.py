"""What a run has shown: sampling before and after, statistics with intervals, the report, speed."""

import rewards  # noqa: F401  refuses a Python that is too old
