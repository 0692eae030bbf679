"""Data set YAMLs, hyperparameters and command-line scripts."""
