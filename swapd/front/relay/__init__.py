"""The gate's relay: HTTP/1.1 from clients to engines' private sockets. Each file knows one part of the way."""
