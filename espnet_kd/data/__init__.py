"""Audio and text: Lhotse cuts, Kaldi data folders, validation."""
