"""Measures the gateway beside other brokers: `make bench`, or `python -m benchmarks --help`. See README.md here.

Each profile is one file in `profiles/`; it prints a table and writes JSON. None of this is a test with a time limit.
"""
