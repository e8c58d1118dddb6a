"""Whether the image regions that a model weighs for a question are those of the thing that the question names."""
