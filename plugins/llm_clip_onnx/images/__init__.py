"""Turns image bytes into the pixels that the image tower reads, within limits of memory and time."""
