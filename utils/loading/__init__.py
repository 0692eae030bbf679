"""Samples, batches, and their way to the device."""
