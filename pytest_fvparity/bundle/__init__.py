"""A failure in a file: written where it happens, judged again anywhere."""
