"""What students are worth: scores on rooms nobody trained on and on real recordings, and ablations as in Table 4."""
