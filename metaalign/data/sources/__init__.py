"""Files and data sets in, rows out. Knows no shape of a row."""
