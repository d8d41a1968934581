"""The daemon: wiring, the loop that owns the state, and the executor that carries out its effects."""
