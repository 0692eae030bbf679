"""Image files, videos and streams, read and augmented."""
