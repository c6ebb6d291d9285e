"""One HTML page from stored records; never samples."""
