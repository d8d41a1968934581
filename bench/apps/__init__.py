"""The apps that the benches serve."""
