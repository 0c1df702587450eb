"""Which images are built and pushed, how far that is, and what went wrong: one record that commands, pages and programs ask."""
