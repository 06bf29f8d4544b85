"""Teacher hypotheses: types, storage on cuts, fingerprints, the KD training set."""
