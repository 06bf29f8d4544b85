# Where the corpora are. Environment variables override this file. Both are sold
# by the LDC (no download); each is the folder that holds the discs (11-1.1, ...), whatever
# their names are written like, or wsj0/ and wsj1/ of a merged copy. Both may be the same.
#
# WSJ0: LDC93S6A or LDC93S6B (discs 11-1.1 to 11-15.1).
WSJ0=${WSJ0:-}
# WSJ1: LDC94S13A or LDC94S13B (discs 13-1.1 to 13-34.1).
WSJ1=${WSJ1:-}
