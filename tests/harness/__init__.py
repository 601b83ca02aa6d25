"""Support code of the tests and benchmarks: real servers as child processes. No assertions live here."""
