"""The work of the prepare job: parts of files as Ray Data tasks, and what is counted on the way."""
