"""A classifier as a server: an HTTP API and a web page over one engine."""
