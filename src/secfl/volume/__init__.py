"""The encrypted volume formats over abstract storage. Pure."""
