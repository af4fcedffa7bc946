"""Tests of the benches themselves: that they run, measure what they say, and leave nothing running."""
