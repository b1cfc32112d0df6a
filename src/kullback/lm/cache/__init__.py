"""The sub-command `kullback lm cache`: keep what a teacher says of a text."""
