"""Disk, time and memory of a recipe's stages, before they run."""
