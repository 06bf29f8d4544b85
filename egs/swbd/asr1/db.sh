# Where the corpora are. Environment variables override this file. All but the
# transcripts of Switchboard are sold by the LDC. Folders are searched, so it does not matter
# how their discs were unpacked, and several variables may name the same folder.
#
# Audio of Switchboard-1 Release 2: LDC97S62.
SWBD=${SWBD:-}
# Mississippi State's transcripts and dictionary: switchboard_word_alignments.tar.gz of
# openslr.org/5 (25 MB, free), unpacked.
SWBD_TRANSCRIPTS=${SWBD_TRANSCRIPTS:-${SWBD}}
# Audio and references of Hub5 2000: LDC2002S09 and LDC2002T43.
EVAL2000=${EVAL2000:-}
EVAL2000_TRANSCRIPTS=${EVAL2000_TRANSCRIPTS:-${EVAL2000}}
# Optional, text for a language model: transcripts of Fisher, LDC2004T19 and LDC2005T19, as
# one folder or several with blanks between.
FISHER=${FISHER:-}
