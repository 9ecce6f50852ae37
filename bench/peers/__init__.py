"""Other implementations that do the same job, to be measured beside voicegate."""
