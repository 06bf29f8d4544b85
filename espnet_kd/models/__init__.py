"""What the package knows of ESPnet's models and of how its versions differ."""
