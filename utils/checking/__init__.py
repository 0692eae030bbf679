"""Checks of a data set: files, labels, splits and label errors, found before a training is paid for."""
