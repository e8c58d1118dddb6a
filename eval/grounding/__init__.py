"""Measures whether the image regions to which a model gives weight are those that the question names."""
