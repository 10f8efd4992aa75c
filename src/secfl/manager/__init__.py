"""The Security Policy Manager: governance, attestation, release, and the log that is its only memory."""
