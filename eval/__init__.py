"""What a run has shown: sampling before and after, statistics with intervals, the report, speed."""
