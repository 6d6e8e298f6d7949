"""Tenants as Ray actors."""
