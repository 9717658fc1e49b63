"""What a run says: the report, its files, several of them as one."""
