"""Export: plain ESPnet folder; CSR, 2:4 and int8 weights; WER and speed of each."""
