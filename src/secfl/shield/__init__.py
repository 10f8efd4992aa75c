"""The shield: attest, receive, mount, inject, connect, launch, watch."""
