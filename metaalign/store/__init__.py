"""The token store: the output of data preparation and the input of training."""
