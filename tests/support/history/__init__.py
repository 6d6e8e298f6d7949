"""Histories of what concurrent clients saw, and checkers that say what no correct store shows."""
