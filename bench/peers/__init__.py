"""Ways to replace a model that people use today, and swapd, measured alike: `python -m bench.peers`."""
