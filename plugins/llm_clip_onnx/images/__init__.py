"""Image files to the pixels that the image tower reads, within bounds of memory and time."""
