"""Audio and text: Lhotse cuts, Kaldi data folders, validation, small corpora."""
