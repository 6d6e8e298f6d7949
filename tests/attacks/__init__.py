"""Attacks on the boundary between tenants, each tried on the product and on a setup without one."""
