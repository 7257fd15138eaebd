"""Builders of data sets for TensorFlow Datasets, which does not have them."""
