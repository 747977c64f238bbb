"""Measure on a base model what compression changes in its next-token distributions."""
