"""swapd-cli: the command line."""
