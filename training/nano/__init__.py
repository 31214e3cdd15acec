"""The built-in network ``nano``: rendered views, training, export, scores."""
