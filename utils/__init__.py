"""Shared files of the ground floor, and the wings above it."""
