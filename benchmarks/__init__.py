"""Benchmarks: one question per module. They report ratios of contestants that ran side by side, and assert nothing."""
