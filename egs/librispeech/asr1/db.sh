# Where the corpora are. Environment variables override this file.
#
# LibriSpeech (openslr.org/12): the folder that holds LibriSpeech/, or that one itself.
LIBRISPEECH=${LIBRISPEECH:-downloads}
# Text for a language model (openslr.org/11, librispeech-lm-norm.txt.gz); empty: none.
LIBRISPEECH_LM_TEXT=${LIBRISPEECH_LM_TEXT:-}
