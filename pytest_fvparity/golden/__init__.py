"""Recordings of the reference: written, sealed, found, read, compared."""
