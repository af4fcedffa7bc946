"""Image bytes to the pixels that the image tower reads, within limits of memory and time."""
