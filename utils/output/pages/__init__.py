"""HTML pages of runs: one set of templates, a style and a script, written as files that need nothing else."""
