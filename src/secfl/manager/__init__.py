"""The Security Policy Manager: core state machine, store, log, certificate authority and HTTPS edge."""
