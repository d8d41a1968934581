"""Decisions only: no I/O, no clock, no randomness. Values come in, values go out."""
