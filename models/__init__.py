"""Networks from model YAMLs, and weights files read into networks."""
