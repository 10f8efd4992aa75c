"""Cryptographic building blocks over `cryptography`; nothing here invents a primitive."""
