"""Benches: one program a question. Method, units and how to read the results: bench/README.md."""
