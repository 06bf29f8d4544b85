"""A trained model as a plain ESPnet folder, in smaller forms, and their worth."""
