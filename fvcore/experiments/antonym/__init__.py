"""The antonym experiment: the production steps in one folder."""
