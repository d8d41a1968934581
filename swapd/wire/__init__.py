"""Bytes to values and back, for each of the three channels: control, worker, peer."""
