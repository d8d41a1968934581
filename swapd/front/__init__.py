"""The owner of client connections: accepts, serves or holds them, and hands them over."""
