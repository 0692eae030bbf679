"""Data sets on disk: YAMLs, label files, the index of a split and its cache, converters, the built-in set."""
