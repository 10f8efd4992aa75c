"""Flower, unmodified: launch, warm executor, grid and the contract with one exact version."""
