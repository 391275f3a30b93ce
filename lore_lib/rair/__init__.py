"""Benchmark in the shape of RAIR: its subsets, its metrics with intervals, and trivial baselines."""
