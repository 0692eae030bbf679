"""Command-line scripts that make or convert data sets."""
