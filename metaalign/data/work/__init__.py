"""The work of the prepare job: reads parts of files as Ray Data tasks and counts their rows."""
