"""Ray Data: files in, token store out."""
