"""Select-KV judged by pytest: the gates A and B of a run, of a finished one or of one that is made for it."""

SUITE = "selectkv"
