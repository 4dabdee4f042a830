"""Files and data sets in, rows out. Independent of the shapes of rows."""
