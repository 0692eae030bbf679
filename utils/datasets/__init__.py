"""Where data is: data set YAMLs, label files, the index of a split and its cache, and the built-in set."""
