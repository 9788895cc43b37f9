"""Trajectory files and the data sets made of them."""
