"""What people get: drawings, charts, label files, COCO files and videos."""
