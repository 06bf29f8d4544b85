"""What a teacher said: types, storage on cuts, fingerprint, the KD training set."""
