"""The policy language: strict decoding, the board's rule, references and placeholders. Pure."""
