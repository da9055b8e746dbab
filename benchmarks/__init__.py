"""Benchmarks: what Hesse claims about speed is what these commands measure."""
