"""swapd: replace a model in production without the clients noticing."""

__version__ = "0.1.0"
