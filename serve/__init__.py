"""The HTTP endpoint, the command line, and the root where everything is put together."""
