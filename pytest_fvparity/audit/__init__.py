"""The data of pathways judged by pytest: a config is a test file, and what its data is audited for are the stages."""
