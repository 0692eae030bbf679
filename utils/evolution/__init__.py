"""Hyperparameter search: what to try next, where results are kept, and the trainings it starts."""
