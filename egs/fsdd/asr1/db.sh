# Where the corpora are. A variable of the environment wins over this file.
#
# Free Spoken Digit Dataset: the folder that holds recordings/. local/data.sh clones
# the default one where there is network.
FSDD=${FSDD:-downloads/free-spoken-digit-dataset}
