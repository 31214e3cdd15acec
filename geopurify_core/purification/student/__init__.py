"""The Student Affinity Network: what it is shown, what it is made of, where its weights come from."""
