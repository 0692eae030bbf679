"""From image files, videos and streams to augmented pixels."""
