"""Inference: from a network and images to detections and metrics."""
