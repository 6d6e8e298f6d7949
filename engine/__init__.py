"""PostgreSQL as the runtime uses it."""
