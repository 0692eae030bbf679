"""Tracks: the detections of successive frames that are one object."""
