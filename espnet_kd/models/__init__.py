"""ESPnet's models, and the differences between its versions."""
