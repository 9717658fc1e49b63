"""The milestones M0 to M6 of the antonym plan: each a command with its deliverables and its pass criterion."""
