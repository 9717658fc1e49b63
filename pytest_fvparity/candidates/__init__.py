"""Candidates that a user names: a factory, an interpreter, a folder, another library."""
