"""Checkpoints of other codes converted into LoGra-Med folders, and LoGra-Med into stock LLaVA."""
