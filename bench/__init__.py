"""Measurements beside other implementations, in the same run on the same machine."""
