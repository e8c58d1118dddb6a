"""Converts checkpoints of other projects to LoGra-Med folders, and LoGra-Med to stock LLaVA."""
