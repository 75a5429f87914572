"""Weights that a checkpoint already holds as small integers, read without loss into `ops.codes`."""
