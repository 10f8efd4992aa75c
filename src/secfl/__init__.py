"""SECFL: federated learning that no host can read or change, and that every party can check."""
