"""Output for people: drawings, charts, label files, COCO files and videos."""
